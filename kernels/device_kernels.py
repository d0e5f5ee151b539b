"""What serves a device that is not the CPU: one object a loaded model, which holds how its kernels are launched."""

from collections.abc import Sequence
from typing import Protocol

from gmoe.kernels.bank import ExpertBank
from gmoe.kernels.formats import QuantTensor
from gmoe.kernels.kv import KvLayer
from gmoe.kernels.reference_recurrent import DeltaRule, KimiRule, SpaceRule
from gmoe.kernels.reference_step import Mask, Norms, RouterRule, Turn, Turns
from gmoe.kernels.state import Paths, StateLayer
from torch import Tensor


class DeviceKernels(Protocol):
    """All tensors are on the device but the lengths in `Turns`; none of these waits for it."""

    def dequantize(self, w: QuantTensor) -> Tensor:
        """The values of `w`, float32 of its shape [rows, cols]."""

    def matmul(self, x: Tensor, w: QuantTensor, exact: bool) -> Tensor:
        """x [T, in] float32 @ w.T -> [T, out] float32; not `exact`: x may be rounded, but keeps its range."""

    def linears(self, x: Tensor, weights: Sequence[tuple[QuantTensor, Tensor | None]], exact: bool) -> list[Tensor]:
        """`matmul` of the same rows with several weights, each with its bias [out] or None."""

    def expert_rows(
        self, x: Tensor, slots: Tensor, ids: Tensor, bank: ExpertBank, activation: str, out: Tensor, exact: bool
    ) -> None:
        """Fill out[t, j] with expert ids[t, j] of x[t]; x [T, D], out [T, k, D], ids [T, k] int32.

        It lies in slots[t, j] int32, or by id in slots [E]; a slot or an id of -1 leaves its row alone. A row's bits do
        not depend on the other slots.
        """

    def combine(self, out: Tensor, weights: Tensor, places: Tensor) -> Tensor:
        """Sum out [T, k, D] over k in order, weighted [T, k]; a place [T, k] int32 below 0 counts nothing."""

    def choose(self, logits: Tensor, rule: RouterRule) -> tuple[Tensor, Tensor]:
        """logits [T, E] float32 -> ids [T, k] int32, best first and equals by id, and weights [T, k] float32."""

    def rms_norm(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        """x [..., n] float32 / rms(x) * weight [n] + bias [n]."""

    def residual_norm(
        self, x: Tensor, y: Tensor, scale: float, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor]:
        """x + scale * y of [T, n] float32, in the memory of y, and its `rms_norm`."""

    def rotate(self, x: Tensor, positions: Tensor, frequencies: Tensor, magnitude: float, neox: bool) -> Tensor:
        """x [T, H, d], the first 2 * len(frequencies) of each head rotated by positions [T] * frequencies."""

    def heads(self, q: Tensor, k: Tensor, norms: Norms, positions: Tensor, turn: Turn | None) -> tuple[Tensor, Tensor]:
        """q [T, H, d], k [T, Hkv, d], each head normed by its rule's weight [d], then turned by positions [T]."""

    def activate(self, name: str, gate: Tensor | None, up: Tensor) -> Tensor:
        """The activation of gate and up [T, n] float32; "sigmoid", "softplus": up times that of gate, or of [T, 1]."""

    def store(self, kv: KvLayer, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Write keys [T, heads, dk] and values [T, heads, dv] float32 at slots [T], as `KvLayer.write` rounds them."""

    def attention(
        self, q: Tensor, kv: KvLayer, turns: Turns, scale: float, mask: Mask, sinks: Tensor | None, cap: float
    ) -> Tensor:
        """q [T, H, dk] float32 over the cache -> [T, H, dv]; `sinks` [H] and `cap` as in `ops.attention`."""

    def short_conv(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        state: StateLayer,
        paths: Paths,
        silu: bool,
        before: Tensor | None,
        after: Tensor | None,
    ) -> Tensor:
        """`recurrent.ShortConv` of this weight and bias; the paths are on the device, and a target may be -1."""

    def delta_rule(
        self, qkv: Tensor, alpha: Tensor, beta: Tensor, z: Tensor, rule: DeltaRule, state: StateLayer, paths: Paths
    ) -> Tensor:
        """`recurrent.DeltaNet`; the paths are on the device, and a target may be -1."""

    def kimi_delta(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        fade: Tensor,
        beta: Tensor,
        gate: Tensor,
        rule: KimiRule,
        state: StateLayer,
        paths: Paths,
    ) -> Tensor:
        """`recurrent.KimiDelta`; the paths are on the device, and a target may be -1."""

    def state_space(
        self, xbc: Tensor, dt: Tensor, z: Tensor, rule: SpaceRule, state: StateLayer, paths: Paths
    ) -> Tensor:
        """`recurrent.StateSpace`; the paths are on the device, and a target may be -1."""
