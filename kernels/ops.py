"""The only door into the room: products with weights, and the other parts of a step, on whatever serves the device."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from gmoe.kernels import cpu_ops, cpu_step, reference, reference_step
from gmoe.kernels.activations import Curve, situ, under, within
from gmoe.kernels.bank import ExpertBank, SlotMatrix
from gmoe.kernels.device_kernels import DeviceKernels
from gmoe.kernels.formats import FORMATS, QuantFormat, QuantTensor
from gmoe.kernels.kv import KvLayer
from gmoe.kernels.lend import lender
from gmoe.kernels.record import record
from gmoe.kernels.reference import as_tensor
from gmoe.kernels.reference_step import HeadRule, Mask, RouterRule, Score, Turn, Turns
from gmoe.kernels.rounding import round_activations
from gmoe.kernels.rowwise import activate, blended, capped, clamped, gated, layer_norm, scaled, stream_weights, warmth
from torch import Tensor

__all__ = [
    "Activations", "Curve", "DeviceKernels", "ExpertBank", "ExpertMatrix", "ExpertTable", "HeadMaps", "HeadRule",
    "Heads", "Linears", "Mask", "Rotation", "Router", "Rows", "RouterRule", "Score", "SlotMatrix", "Turns",
    "activate", "attention", "bank_rows", "blended", "capped", "clamped", "combine", "dequantize", "expert_mlp",
    "expert_rows", "gated", "head_norm", "lay", "layer_norm", "matmul", "lender", "reach", "record", "residual",
    "residual_norm", "rms_norm", "scaled", "situ", "store", "stream_weights", "under", "warmth", "within",
]  # fmt: skip

Activations = Literal["q8", "float"]
Biased, Floats = tuple[QuantTensor, Tensor | None], Sequence[float]  # a map and its bias
On = DeviceKernels | None  # what computes where the tensors are; None: on the CPU
AT_ONCE = 32  # rows that torch dequantizes together: it takes thirty times their bytes


@dataclass(frozen=True)
class ExpertMatrix:
    """One of gate, up and down for a table of experts, where they lie in host memory."""

    format: QuantFormat
    rows: int
    cols: int
    address: np.ndarray  # int64 [n], 0: absent
    bias: np.ndarray | None  # float32 [n, rows]
    owner: Any  # keeps the bytes alive
    data: Callable[[int], np.ndarray]  # expert -> uint8 [rows, row_bytes]
    scale: np.ndarray | None = None  # float32 [n]: of an expert's product, before its bias

    def tensor(self, expert: int) -> QuantTensor:
        """The matrix of one expert, without a copy."""
        return QuantTensor(self.data(expert), self.format, (self.rows, self.cols))


@dataclass(frozen=True)
class ExpertTable:
    """The experts of one layer; row n of each matrix is expert n."""

    gate: ExpertMatrix | None
    up: ExpertMatrix
    down: ExpertMatrix

    @cached_property
    def compiled(self) -> "dict[Activations, cpu_ops.Experts | None]":
        """The table as the CPU kernels take it, by the kind of activations; None where they lack one of its formats."""
        formats = [m.format for m in (self.gate, self.up, self.down) if m is not None]
        kinds: tuple[Activations, ...] = ("q8", "float")
        return {kind: cpu_ops.Experts(self) if all(_compiles(f, kind) for f in formats) else None for kind in kinds}


def dequantize(w: QuantTensor, dtype: torch.dtype = torch.float32, on: On = None) -> Tensor:
    """The values of `w`, of `w.shape` and where its bytes are; computed in float32 and then converted to `dtype`."""
    if _on_cpu(w) and len(w.shape) == 2 and dtype == torch.float32 and cpu_ops.has_values(w.format.name):
        return cpu_ops.Rows(w)(torch.arange(w.shape[0]), threads=torch.get_num_threads())
    if _on_cpu(w) or w.format.block_size == 1:
        return reference.dequantize(w, dtype)
    assert on is not None
    flat = QuantTensor(w.data, w.format, (int(np.prod(w.shape[:-1])), w.shape[-1]))
    return on.dequantize(flat).view(w.shape).to(dtype)


class Rows:
    """Rows of a matrix [V, D] on the CPU, as floats on `device`, dequantized there and exactly."""

    def __init__(self, w: QuantTensor, device: torch.device, on: On = None):
        self.weight, self.device, self.on = w, device, on
        here = device.type == "cpu" and cpu_ops.has_values(w.format.name)
        self._native = cpu_ops.Rows(w) if here else None

    def __call__(self, ids: Tensor) -> Tensor:
        """ids [T] int64 on the CPU -> [T, D] float32."""
        if self._native is not None:
            return self._native(ids, threads=torch.get_num_threads())
        w = self.weight
        data, out = as_tensor(w.data), torch.empty(len(ids), w.shape[1], device=self.device)
        for at in range(0, len(ids), AT_ONCE):
            part = data.index_select(0, ids[at : at + AT_ONCE]).to(self.device)
            out[at : at + AT_ONCE] = dequantize(QuantTensor(part, w.format, (len(part), w.shape[1])), on=self.on)
        return out


def matmul(x: Tensor, w: QuantTensor, *, activations: Activations = "q8", on: On = None) -> Tensor:
    """`x @ w.T`: x [T, in] float32 -> [T, out] float32, both where x is.

    On the CPU "q8" rounds x to 8-bit blocks as llama.cpp does; "float" multiplies with the exactly dequantized weights.
    A row's bits depend on no other row there.
    """
    if on is not None:
        return on.matmul(x, w, activations == "float")
    if not _compiles(w.format, activations):
        x = round_activations(x, w.format) if activations == "q8" else x
        w = QuantTensor(dequantize(w).view(torch.uint8), FORMATS["F32"], w.shape)
    return cpu_ops.matmul(x, w, threads=torch.get_num_threads())


def expert_rows(
    x: Tensor, topk_ids: Tensor, table: ExpertTable, activation: str, activations: Activations, out: Tensor
) -> None:
    """Fill out[t, j] with expert topk_ids[t, j] of x[t]; x [T, D], out [T, k, D]; an id of -1 leaves its row alone."""
    compiled = table.compiled[activations]
    if compiled is not None:
        cpu_ops.expert_rows(x, topk_ids, compiled, activation, out, threads=torch.get_num_threads())
        return
    for expert in torch.unique(topk_ids).tolist():
        if expert >= 0:
            token, slot = torch.nonzero(topk_ids == expert, as_tuple=True)
            out[token, slot] = _expert(x[token], expert, table, activation, activations)


def bank_rows(
    x: Tensor,
    slots: Tensor,
    ids: Tensor,
    bank: ExpertBank,
    activation: str,
    activations: Activations,
    out: Tensor,
    on: DeviceKernels,
) -> None:
    """`expert_rows` of experts in slots on a device: slots [T, k], or [E] by id; one of -1 leaves its row alone."""
    on.expert_rows(x, slots, ids, bank, activation, out, activations == "float")


def combine(out: Tensor, topk_weights: Tensor, topk_ids: Tensor, on: On = None) -> Tensor:
    """Sum out [T, k, D], weighted, over k in order (CPU: in that of the ids); -1 counts nothing. Returns [T, D]."""
    if on is None:
        return cpu_ops.combine(out, topk_weights, topk_ids, threads=torch.get_num_threads())
    return on.combine(out, topk_weights, topk_ids)


def expert_mlp(
    x: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor,
    table: ExpertTable,
    activation: str = "swiglu",
    activations: Activations = "q8",
) -> Tensor:
    """The routed experts' sum for x [T, D] -> [T, D]; bit for bit `combine(expert_rows(...))`."""
    compiled = table.compiled[activations]
    if x.device.type == "cpu" and compiled is not None:
        threads = torch.get_num_threads()
        return cpu_ops.expert_mlp(x, topk_ids, topk_weights, compiled, activation, threads=threads)
    out = x.new_empty(x.shape[0], topk_ids.shape[1], table.down.rows)
    expert_rows(x, topk_ids, table, activation, activations, out)
    return combine(out, topk_weights, topk_ids)


class Linears:
    """Maps of the same rows, each with a bias or None and a scale before it; one call gives the results of all."""

    def __init__(self, weights: Sequence[Biased], activations: Activations, on: On = None, scales: Floats = ()):
        self.weights, self.activations, self.on = list(weights), activations, on
        self.scales = list(scales) or [1.0] * len(weights)
        here = all(_on_cpu(w) and _compiles(w.format, activations) for w, _ in self.weights)
        self._compiled = cpu_step.Linears(self.weights, self.scales) if here else None

    @property
    def compiled(self) -> bool:
        """A kernel of the CPU reads the weights as they lie: it costs nothing to come for the rows a few at a time."""
        return self._compiled is not None

    def __call__(self, x: Tensor, out: Tensor | None = None) -> list[Tensor]:
        """x [T, in] float32 -> for each weight [T, out]; on the CPU in the memory of `out`, as large as all, if given.

        `out` is not x.
        """
        if self._compiled is not None:
            return self._compiled(x, torch.get_num_threads(), out)
        if self.on is not None and all(scale == 1.0 for scale in self.scales):
            return self.on.linears(x, self.weights, self.activations == "float")
        scaled = zip(self.weights, self.scales, strict=True)
        products = [scale * matmul(x, w, activations=self.activations, on=self.on) for (w, _), scale in scaled]
        results = [y if bias is None else y + bias for y, (_, bias) in zip(products, self.weights, strict=True)]
        if out is None:
            return results
        parts = torch.split(out.view(-1), [y.numel() for y in results])
        return [part.view_as(y).copy_(y) for part, y in zip(parts, results, strict=True)]


class HeadMaps:
    """A map of each head's own, of one format and shape."""

    def __init__(self, maps: Sequence[QuantTensor], activations: Activations, on: On = None):
        self.maps, self.activations, self.on = list(maps), activations, on
        here = all(_on_cpu(w) and _compiles(w.format, activations) for w in maps)
        self._compiled = cpu_step.HeadMaps(self.maps) if here else None

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """x [T, H, in] float32 -> [T, H, out], in `out` if given; both may be parts of wider rows."""
        out = x.new_empty(*x.shape[:2], self.maps[0].shape[0]) if out is None else out
        if self._compiled is not None:
            self._compiled(x, out, torch.get_num_threads())
        else:
            for h, w in enumerate(self.maps):
                out[:, h] = matmul(x[:, h].contiguous(), w, activations=self.activations, on=self.on)
        return out


class Router:
    """From a router's logits [T, E] to the ids [T, k] int32 and weights [T, k] of the chosen experts."""

    def __init__(self, rule: RouterRule, on: On = None):
        self.rule, self.on = rule, on
        here = all(vector is None or vector.device.type == "cpu" for vector in (rule.bias, rule.each))
        self._compiled = cpu_step.Router(rule if here else rule._replace(bias=None, each=None))  # elsewhere only checks

    def __call__(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        if self.on is None:
            return self._compiled(logits, torch.get_num_threads())
        return self.on.choose(logits, self.rule)

    def thoughts(self, logits: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """Of all experts: what they are chosen by and their probabilities [T, E]; and the weights of any ids [T, k]."""
        rule, scores = self.rule, reference_step.scores(logits, self.rule)
        selection = reference_step.selection(logits, scores, rule)
        probabilities = torch.softmax(logits, -1) if rule.score is Score.SOFTMAX_WEIGHT else scores
        return selection, probabilities, lambda ids: reference_step.weigh(scores, ids, rule)


def rms_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, on: On = None) -> Tensor:
    """x [..., n] / rms(x) * weight [n] + bias [n]."""
    if on is None:
        return cpu_step.rms_norm(x, weight, bias, eps, torch.get_num_threads())
    return on.rms_norm(x, weight, bias, eps)


def lay(x: Tensor, out: Tensor | None = None) -> Tensor:
    """Copy x [T, H, n] float32 into `out`, or into rows that lie close together; both may be parts of wider rows."""
    out = x.new_empty(x.shape) if out is None else out
    if x.device.type != "cpu":
        return out.copy_(x)
    cpu_step.lay(x, out, torch.get_num_threads())
    return out


def residual(x: Tensor, y: Tensor, scale: float = 1.0) -> Tensor:
    """x + scale * y of [T, n], in the memory of y; torch's own threads would be in the way of the kernels'."""
    if x.device.type != "cpu":
        return y.mul_(scale).add_(x) if scale != 1.0 else y.add_(x)
    x, y = x.contiguous(), y.contiguous()
    cpu_step.residual(x, y, scale, torch.get_num_threads())
    return y


def residual_norm(
    x: Tensor, y: Tensor, scale: float, weight: Tensor | None, bias: Tensor | None, eps: float, on: On = None
) -> tuple[Tensor, Tensor]:
    """`residual`, and its `rms_norm`, on the CPU in the memory of x."""
    if on is not None:
        return on.residual_norm(x, y, scale, weight, bias, eps)
    x = x.contiguous()
    y = residual(x, y, scale)
    return y, cpu_step.rms_norm(y, weight, bias, eps, torch.get_num_threads(), out=x)


def reach(n_ctx: int) -> int:
    """How far what is laid out for a context of `n_ctx` tokens goes: to the next power of two, 256 at least."""
    return max(256, 1 << (n_ctx - 1).bit_length())


class Rotation:
    """Rotates heads by position: `frequencies` [n_rot / 2] radians a position; neox pairs halves, else neighbours."""

    def __init__(self, frequencies: Tensor, magnitude: float, neox: bool, on: On = None):
        self.frequencies, self.magnitude, self.neox, self.on = frequencies, magnitude, neox, on
        self._tables = [self._cos_sin(torch.arange(0, device=frequencies.device))]  # a recorded step reads an old one

    def __call__(self, x: Tensor, positions: Tensor) -> Tensor:
        """x [T, H, d], positions [T] -> rotated copy of x; what is past n_rot stays."""
        if self.on is not None:  # how far a table must reach is not known without waiting for the device
            return self.on.rotate(x, positions, self.frequencies, self.magnitude, self.neox)
        return cpu_step.rotate(x, positions, *self.table(positions), self.neox, torch.get_num_threads())

    def table(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin [n, n_rot / 2] of the CPU, n = `reach` of the positions or more; they stay with the model."""
        need = cpu_step.furthest(positions) + 1
        if need > self._tables[-1][0].shape[0]:
            self._tables.append(self._cos_sin(torch.arange(reach(need))))
        return self._tables[-1]

    def _cos_sin(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        angles = positions[:, None].float() * self.frequencies
        return angles.cos() * self.magnitude, angles.sin() * self.magnitude


def head_norm(x: Tensor, rule: HeadRule, on: On = None) -> Tensor:
    """Queries or keys [T, H, d] normed as the rule says."""
    return rms_norm(x.reshape(len(x), -1, len(rule.weight)), rule.weight, rule.bias, rule.eps, on).view(x.shape)


class Heads:
    """What is done to queries and keys before the attention: norms, then rotation; None leaves one out."""

    def __init__(self, q_norm: HeadRule | None, k_norm: HeadRule | None, rotation: Rotation | None, on: On = None):
        self.norms, self.rotation, self.on = (q_norm, k_norm), rotation, on
        self._compiled = cpu_step.Heads(q_norm, k_norm)

    def __call__(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """q [T, H, d], k [T, Hkv, d], positions [T] -> both prepared; on the CPU in the memory of the given ones."""
        if self.on is None:
            q, k = q.contiguous(), k.contiguous()
            table = None if self.rotation is None else self.rotation.table(positions)
            neox = self.rotation is not None and self.rotation.neox
            self._compiled(q, k, positions, table, neox, torch.get_num_threads())
            return q, k
        q_norm, k_norm = self.norms
        if q_norm is not None and len(q_norm.weight) != q.shape[2]:  # over all heads at once
            q, q_norm = head_norm(q, q_norm, self.on), None
        if k_norm is not None and len(k_norm.weight) != k.shape[2]:
            k, k_norm = head_norm(k, k_norm, self.on), None
        r = self.rotation
        turn = None if r is None else Turn(r.frequencies, r.magnitude, r.neox)
        return self.on.heads(q, k, (q_norm, k_norm), positions, turn)


def store(kv: KvLayer, slots: Tensor, keys: Tensor, values: Tensor, on: On = None) -> None:
    """Write keys [T, heads, dk] and values [T, heads, dv] of this step at slots [T]."""
    if on is None:
        cpu_step.store(kv, slots, keys, values, torch.get_num_threads())
    else:
        on.store(kv, slots, keys, values)


def attention(
    q: Tensor,
    kv: KvLayer,
    turns: Turns,
    scale: float,
    mask: Mask,
    sinks: Tensor | None,
    out: Tensor | None = None,
    on: On = None,
    cap: float = 0.0,
) -> Tensor:
    """q [T, H, dk] over the cache -> [T, H, dv]; `sinks` [H] are logits that take part and carry no value.

    Scores, but for these, become cap * tanh(score / cap) where `cap` is not 0.

    On the CPU in `out` if given, which may be a part of q, or in the memory of q where dk = dv.
    """
    if on is None:
        q = q.contiguous()
        out = q if out is None and q.shape[2] == kv.shape.dv else out
        return cpu_step.attention(q, kv, turns, scale, mask, sinks, torch.get_num_threads(), out=out, cap=cap)
    return on.attention(q, kv, turns, scale, mask, sinks, cap)


def _expert(x: Tensor, expert: int, table: ExpertTable, activation: str, activations: Activations) -> Tensor:
    gate = None if table.gate is None else _biased(x, table.gate, expert, activations)
    up = _biased(x, table.up, expert, activations)
    return _biased(activate(activation, gate, up), table.down, expert, activations)


def _biased(x: Tensor, matrix: ExpertMatrix, expert: int, activations: Activations) -> Tensor:
    scale, bias = (None if v is None else torch.from_numpy(v)[expert] for v in (matrix.scale, matrix.bias))
    return Linears([(matrix.tensor(expert), bias)], activations, scales=[] if scale is None else [float(scale)])(x)[0]


def _compiles(format: QuantFormat, activations: Activations) -> bool:
    """Whether the CPU's kernels read this format as it lies and round nothing that is not to be rounded."""
    return cpu_ops.supported(format.name) and (activations == "q8" or format.name == "F32")


def _on_cpu(w: QuantTensor) -> bool:
    return not isinstance(w.data, Tensor) or w.data.device.type == "cpu"
