"""Triton's side of `device_kernels.DeviceKernels`: float32 in and out, launched where the tensors are."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from gmoe.kernels.bank import ExpertBank
from gmoe.kernels.formats import QuantTensor
from gmoe.kernels.kv import KvLayer
from gmoe.kernels.reference_recurrent import DeltaRule, KimiRule, SpaceRule
from gmoe.kernels.reference_step import Mask, Norms, RouterRule, Turn, Turns
from gmoe.kernels.state import Paths, StateLayer
from gmoe.kernels.triton import activation as activations
from gmoe.kernels.triton import attention as attending
from gmoe.kernels.triton import experts, recurrent, router, step
from gmoe.kernels.triton import linears as maps
from gmoe.kernels.triton import matmul as products
from gmoe.kernels.triton.tuned import SHIPPED, Choices
from torch import Tensor


def _there(x: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on a thread's current card, whosever the tensors are."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


class Kernels:
    """One a loaded model: `choices` say how its kernels are launched, as long as it lives."""

    def __init__(self, choices: Choices = SHIPPED):
        self.choices = choices

    def dequantize(self, w: QuantTensor) -> Tensor:
        """The values of `w`, float32 of its shape."""
        assert isinstance(w.data, Tensor)
        with _there(w.data):
            return products.dequantize(w)

    def matmul(self, x: Tensor, w: QuantTensor, exact: bool) -> Tensor:
        """x [T, in] @ w.T -> [T, out]; not `exact`: tiles of several rows are multiplied as TF32."""
        with _there(x):
            return products.matmul(x, w, exact=exact, choices=self.choices)

    def linears(self, x: Tensor, weights: Sequence[tuple[QuantTensor, Tensor | None]], exact: bool) -> list[Tensor]:
        """x [T, in] -> for each weight with its bias or None [T, out]; `exact` as in `matmul`."""
        with _there(x):
            return maps.linears(x, weights, exact, self.choices)

    def expert_rows(
        self, x: Tensor, slots: Tensor, ids: Tensor, bank: ExpertBank, activation: str, out: Tensor, exact: bool
    ) -> None:
        """Fill out[t, j] with expert ids[t, j] of x[t], in slots[t, j] or by id in slots [E]; `exact`: see `matmul`."""
        with _there(x):
            experts.expert_rows(x, slots, ids, bank, activation, out, exact, choices=self.choices)

    def combine(self, out: Tensor, weights: Tensor, places: Tensor) -> Tensor:
        """Sum out [T, k, D] over k in order, weighted; a place below 0 counts nothing."""
        with _there(out):
            return experts.combine(out, weights, places)

    def choose(self, logits: Tensor, rule: RouterRule) -> tuple[Tensor, Tensor]:
        """logits [T, E] -> ids [T, k] int32, best first and equals by id, and weights [T, k]."""
        with _there(logits):
            return router.choose(logits, rule)

    def rms_norm(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        """x [..., n] / rms(x) * weight [n] + bias [n]."""
        with _there(x):
            return step.rms_norm(x, weight, bias, eps)

    def residual_norm(
        self, x: Tensor, y: Tensor, scale: float, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor]:
        """x + scale * y of [T, n], in the memory of y, and its norm."""
        with _there(x):
            return step.residual_norm(x, y, scale, weight, bias, eps)

    def rotate(self, x: Tensor, positions: Tensor, frequencies: Tensor, magnitude: float, neox: bool) -> Tensor:
        """x [T, H, d] rotated by positions [T] * frequencies [n_rot / 2]; what is past n_rot stays."""
        with _there(x):
            return step.rotate(x, positions, frequencies, magnitude, neox)

    def heads(self, q: Tensor, k: Tensor, norms: Norms, positions: Tensor, turn: Turn | None) -> tuple[Tensor, Tensor]:
        """q [T, H, d], k [T, Hkv, d], each head normed by its rule's weight [d], then turned by positions [T]."""
        with _there(q):
            return step.heads(q, k, norms, positions, turn)

    def store(self, kv: KvLayer, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Write keys [T, heads, dk] and values [T, heads, dv] at slots [T]."""
        with _there(keys):
            step.store(kv, slots, keys, values)

    def activate(self, name: str, gate: Tensor | None, up: Tensor) -> Tensor:
        """The activation of gate and up [T, n]; "sigmoid" and "softplus": up times that of gate, perhaps [T, 1]."""
        with _there(up):
            return activations.activate(name, gate, up)

    def attention(
        self, q: Tensor, kv: KvLayer, turns: Turns, scale: float, mask: Mask, sinks: Tensor | None, cap: float
    ) -> Tensor:
        """q [T, H, dk] over the cache -> [T, H, dv]; `sinks` [H] and `cap` as in `ops.attention`."""
        with _there(q):
            return attending.attention(q, kv, turns, scale, mask, sinks, choices=self.choices, cap=cap)

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
        """A causal convolution of x [T, C] by weight [C, taps + 1] with a bias [C], its last inputs in the state."""
        with _there(x):
            return recurrent.short_conv(x, weight, bias, state, paths, silu, before, after)

    def delta_rule(
        self, qkv: Tensor, alpha: Tensor, beta: Tensor, z: Tensor, rule: DeltaRule, state: StateLayer, paths: Paths
    ) -> Tensor:
        """A gated delta net: -> [T, n_value * dv], its matrices in the state."""
        with _there(qkv):
            return recurrent.delta_rule(qkv, alpha, beta, z, rule, state, paths)

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
        """Kimi's delta attention: -> [T, n_head * dv], its matrices in the state."""
        with _there(q):
            return recurrent.kimi_delta(q, k, v, fade, beta, gate, rule, state, paths)

    def state_space(
        self, xbc: Tensor, dt: Tensor, z: Tensor, rule: SpaceRule, state: StateLayer, paths: Paths
    ) -> Tensor:
        """A selective state space: -> [T, n_head * dv], its matrices in the state."""
        with _there(xbc):
            return recurrent.state_space(xbc, dt, z, rule, state, paths)
