"""The compiled parts of a step beside products with weights, behind checks: shapes are refused here in a sentence."""

from collections.abc import Sequence
from functools import cache as once
from typing import Any

import numpy as np
import torch
from gmoe.kernels.cpu import _cpu
from gmoe.kernels.cpu_ops import check_floats, weight_address
from gmoe.kernels.formats import QuantTensor
from gmoe.kernels.kv import KvLayer
from gmoe.kernels.reference_step import HeadRule, Mask, RouterRule, Turns
from torch import Tensor

_SIGHTS = {"causal": 0, "sliding": 1, "chunked": 2}
_NUMBERS = {"f32": 0, "f16": 1, "bf16": 2, "q8_0": 3}
MOST_EXPERTS = 1024


@once
def levels() -> list[str]:
    """The levels that this machine can run, slowest first."""
    return list(_cpu.step_levels())


@once
def step_of(level: str | None) -> Any:
    """The kernels of a level, the highest if None; `ValueError` for one that this CPU lacks."""
    if level is not None and level not in levels():
        raise ValueError(f"this CPU has no kernel level {level!r}; it has {', '.join(levels())}")
    return _cpu.Step.named(level or levels()[-1])


class Linears:
    """Weights [out, in] with their biases that meet the same rows; one call, one result a weight.

    `scales`, if there are any, are what their products are multiplied with before the biases.
    """

    def __init__(self, weights: Sequence[tuple[QuantTensor, Tensor | None]], scales: Sequence[float] = ()):
        self.cols = weights[0][0].shape[1]
        self.rows = [w.shape[0] for w, _ in weights]
        self.total = sum(self.rows)
        self._kept = [(w, None if bias is None else bias.contiguous()) for w, bias in weights]
        self._native = _cpu.Linears(str(_cpu.levels()[-1]))
        for (w, bias), scale in zip(self._kept, scales or [1.0] * len(self._kept), strict=True):
            address = weight_address(w, self.cols)
            if bias is not None:
                check_floats("bias", bias, (w.shape[0],))
            bias_address = 0 if bias is None else bias.data_ptr()
            self._native.add(w.format.name, address, w.format.row_bytes(self.cols), *w.shape, bias_address, scale)

    def __call__(self, x: Tensor, threads: int, out: Tensor | None = None) -> list[Tensor]:
        """x [T, in] -> for each weight [T, out], x rounded to 8-bit blocks as llama.cpp does.

        The results lie one behind the other in `out`, which is as large and not x, if given.
        """
        x = x.contiguous()
        if x.dtype is not torch.float32 or x.dim() != 2 or x.shape[1] != self.cols or not x.is_cpu:
            check_floats("x", x, (None, self.cols))  # says what is wrong
        tokens = x.shape[0]
        if out is None:
            out = torch.empty(tokens * self.total)
        elif out.numel() != tokens * self.total or -4 * out.numel() < out.data_ptr() - x.data_ptr() < 4 * x.numel():
            raise ValueError(f"out {list(out.shape)} must have {tokens} times {self.total} numbers, none of them x's")
        else:
            check("out", out, out.shape)
            out = out.view(-1)
        self._native(x.data_ptr(), tokens, out.data_ptr(), threads)
        if len(self.rows) == 1:
            return [out.view(tokens, self.total)]
        parts = torch.split_with_sizes(out, [tokens * n for n in self.rows])
        return [part.view(tokens, n) for part, n in zip(parts, self.rows, strict=True)]


class HeadMaps:
    """Weights [out, in] of one format and shape, one a head."""

    def __init__(self, maps: Sequence[QuantTensor]):
        first = maps[0]
        if any(w.format is not first.format or w.shape != first.shape for w in maps):
            raise ValueError("the maps of all heads must have one format and shape")
        self.rows, self.cols = first.shape
        self._kept = list(maps)
        self._native = _cpu.Linears(str(_cpu.levels()[-1]))
        for w in maps:
            at = weight_address(w, self.cols)
            self._native.add(w.format.name, at, w.format.row_bytes(self.cols), self.rows, self.cols, 0, 1.0)

    def __call__(self, x: Tensor, out: Tensor, threads: int) -> None:
        """x [T, H, in] -> out [T, H, out]; both may be parts of wider rows."""
        tokens, heads = x.shape[0], len(self._kept)
        _check_rows("x", x, (tokens, heads, self.cols))
        _check_rows("out", out, (tokens, heads, self.rows))
        self._native.by_head(x.data_ptr(), *x.stride()[:2], tokens, out.data_ptr(), *out.stride()[:2], threads)


def lay(x: Tensor, out: Tensor, threads: int) -> None:
    """Copy x [T, H, n]; both may be parts of wider rows."""
    _check_rows("x", x, x.shape)
    _check_rows("out", out, x.shape)
    tokens, heads, n = x.shape
    _cpu.lay(x.data_ptr(), *x.stride()[:2], out.data_ptr(), *out.stride()[:2], tokens, heads, n, threads)


def rms_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    threads: int,
    level: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """x [..., n] / rms(x) * weight + bias; in `out` if given."""
    x = x.contiguous()
    n = x.shape[-1]
    if x.dtype is not torch.float32 or not x.is_cpu:
        check("x", x, x.shape)
    weight_at, bias_at = _vectors(n, weight, bias)
    if out is None:
        out = torch.empty_like(x)
    else:
        check("out", out, x.shape)
    if n:
        step_of(level).norm(x.data_ptr(), x.numel() // n, n, weight_at, bias_at, eps, out.data_ptr(), threads)
    return out


def residual(x: Tensor, y: Tensor, scale: float, threads: int, level: str | None = None) -> None:
    """y [T, n] becomes x + scale * y."""
    check("y", y, x.shape)
    check("x", x, x.shape)
    step_of(level).residual(x.data_ptr(), scale, *x.shape, y.data_ptr(), threads)


class Heads:
    """Norms of queries [T, H, d] and keys [T, Hkv, d], then their rotation, in one call and in place."""

    def __init__(self, q_norm: HeadRule | None, k_norm: HeadRule | None):
        self._norms = {"q": q_norm, "k": k_norm}
        self._known: dict[tuple[torch.Size, torch.Size, int], tuple[Any, Any]] = {}

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        positions: Tensor,
        table: tuple[Tensor, Tensor] | None,
        neox: bool,
        threads: int,
        level: str | None = None,
    ) -> None:
        """The tables cos and sin [n, n_rot / 2] reach as far as the positions [T]; without them nothing is rotated."""
        n_rot, cos, sin = (0, 0, 0) if table is None else (_rotated(table), table[0].data_ptr(), table[1].data_ptr())
        key = q.shape[1:], k.shape[1:], n_rot
        if key not in self._known:
            self._known[key] = self._native("q", q, n_rot), self._native("k", k, n_rot)
        tokens = positions.shape[0]
        for name, x in (("q", q), ("k", k)):
            if x.shape[0] != tokens or x.dtype is not torch.float32 or not x.is_cpu or not x.is_contiguous():
                check(name, x, torch.Size((tokens, *x.shape[1:])))
        at = q.data_ptr(), k.data_ptr(), tokens, n_rot, neox, cos, sin, positions.data_ptr()
        step_of(level).prepare(*self._known[key], *at, threads)

    def _native(self, name: str, x: Tensor, n_rot: int) -> Any:
        norm, (_, heads, d) = self._norms[name], x.shape
        width = 0 if norm is None else len(norm.weight)
        if n_rot > d or (norm is not None and (not width or heads * d % width)):
            raise ValueError(f"a norm of {width} and a rotation of {n_rot} do not fit {heads} heads of {d}")
        at = (0, 0) if norm is None else _vectors(width, norm.weight, norm.bias)
        return _cpu.Heads(heads, d, width, *at, 0.0 if norm is None else norm.eps)


def furthest(positions: Tensor) -> int:
    """The largest of positions [T] int64, T > 0."""
    if (
        positions.dtype is not torch.int64
        or positions.dim() != 1
        or not positions.is_contiguous()
        or not positions.is_cpu
    ):
        raise ValueError(f"positions must be contiguous int64 [T] on the CPU, not {positions.dtype} {positions.shape}")
    return int(_cpu.furthest(positions.data_ptr(), positions.numel()))


def rotate(
    x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, neox: bool, threads: int, level: str | None = None
) -> Tensor:
    """x [T, H, d] rotated by the tables [n, n_rot / 2], which reach as far as the positions [T]."""
    tokens, heads, d = x.shape
    n_rot = _rotated((cos, sin))
    if n_rot > d or positions.shape != (tokens,):
        raise ValueError(f"x {list(x.shape)}, a rotation of {n_rot} and positions {list(positions.shape)} do not fit")
    x = x.contiguous()
    check("x", x, x.shape)
    y = torch.empty_like(x)
    native = step_of(level).rotate
    address = x.data_ptr(), y.data_ptr(), tokens, heads, d, n_rot, neox, cos.data_ptr(), sin.data_ptr()
    native(*address, positions.data_ptr(), threads)
    return y


class Router:
    """A rule, checked once."""

    def __init__(self, rule: RouterRule):
        r = rule
        if not 0 < r.chosen <= r.experts <= MOST_EXPERTS or r.groups < 1 or r.experts % r.groups:
            raise ValueError(f"{r.chosen} of {r.experts} experts in {r.groups} groups: at most {MOST_EXPERTS} experts")
        if r.chunk < 1:
            raise ValueError(f"chunks of {r.chunk} experts")
        if not 0 < r.groups_used <= r.groups or r.groups_used * (r.experts // r.groups) < r.chosen:
            raise ValueError(f"{r.groups_used} of {r.groups} groups do not hold {r.chosen} experts")
        for name, vector in (("bias", r.bias), ("each", r.each)):
            if vector is not None:
                check(name, vector, (r.experts,))
        self.rule = rule
        args = r.experts, r.chosen, r.groups, r.groups_used, int(r.score), at(r.bias), r.renormalize, r.scale
        args = *args, at(r.each), r.chunk
        self._native = _cpu.Router(*args)

    def __call__(self, logits: Tensor, threads: int, level: str | None = None) -> tuple[Tensor, Tensor]:
        """logits [T, E] -> ids [T, k] int32, best first, and weights [T, k]."""
        logits = logits.contiguous()
        tokens, k = logits.shape[0], self.rule.chosen
        check("logits", logits, (tokens, self.rule.experts))
        ids, weights = torch.empty(tokens, k, dtype=torch.int32), torch.empty(tokens, k)
        native = step_of(level).choose
        native(self._native, logits.data_ptr(), tokens, ids.data_ptr(), weights.data_ptr(), threads)
        return ids, weights


def store(kv: KvLayer, slots: Tensor, keys: Tensor, values: Tensor, threads: int, level: str | None = None) -> None:
    """Write keys [T, heads, dk] and values [T, heads, dv] at slots [T]."""
    shape, tokens = kv.shape, slots.shape[0]
    keys, values = keys.contiguous(), values.contiguous()
    check("keys", keys, (tokens, shape.heads, shape.dk))
    check("values", values, (tokens, shape.heads, shape.dv))
    address = slots.data_ptr(), tokens, keys.data_ptr(), values.data_ptr()
    step_of(level).store(_cache(kv), *address, threads)


def attention(
    q: Tensor,
    kv: KvLayer,
    turns: Turns,
    scale: float,
    mask: Mask,
    sinks: Tensor | None,
    threads: int,
    level: str | None = None,
    out: Tensor | None = None,
    cap: float = 0.0,
) -> Tensor:
    """q [T, H, dk] over the cache -> [T, H, dv]; a row's bits do not depend on the other rows, threads or the level.

    The result is in `out` if given, which may be part of wider rows, and q itself or a part of it. Scores, but for
    `sinks`, become cap * tanh(score / cap) where `cap` is not 0.
    """
    q = q.contiguous()
    tokens, heads, dk = q.shape
    shape = kv.shape
    if dk != shape.dk or heads % shape.heads:
        raise ValueError(f"queries {list(q.shape)} do not fit {shape.heads} heads of {shape.dk}")
    check("q", q, q.shape)
    if sinks is not None:
        check("sinks", sinks, (heads,))
    positions, tables, starts = turns.positions, turns.block_tables, turns.query_starts
    out = torch.empty(tokens, heads, shape.dv) if out is None else out
    _check_rows("out", out, torch.Size((tokens, heads, shape.dv)))
    if out.stride(0) != heads * out.stride(1):
        raise ValueError(f"the heads of out lie {out.stride()[:2]} apart, not like rows of a matrix")
    step_of(level).attend(
        _cache(kv),
        q.data_ptr(),
        out.data_ptr(),
        out.stride(1),
        heads,
        scale,
        cap,
        at(sinks),
        _SIGHTS[mask.kind],
        mask.size,
        positions.data_ptr(),
        tables.data_ptr(),
        tables.shape[1],
        starts.data_ptr(),
        tables.shape[0],
        threads,
    )
    return out


def argmax(x: np.ndarray) -> int:
    """The place of the largest of float32 [n], the first of equals; -1 where one is not a number."""
    return int(_cpu.argmax(_vector(x).ctypes.data, len(x)))


def largest(x: np.ndarray, k: int) -> np.ndarray:
    """Places int64 [k] of the largest of float32 [n], largest first, equals by place."""
    k = min(k, len(x))
    places = np.empty(k, np.int64)
    if k:
        _cpu.largest_places(_vector(x).ctypes.data, len(x), k, places.ctypes.data)
    return places


def _vector(x: np.ndarray) -> np.ndarray:
    if x.dtype != np.float32 or x.ndim != 1 or not x.flags.c_contiguous:
        raise ValueError(f"must be contiguous float32 [n], not {x.dtype} {list(x.shape)}")
    return x


def _rotated(table: tuple[Tensor, Tensor]) -> int:
    """Elements of a head that the tables cos and sin rotate."""
    cos, sin = table
    check("cos", cos, cos.shape)
    check("sin", sin, cos.shape)
    return 2 * cos.shape[1]


def _vectors(n: int, weight: Tensor | None, bias: Tensor | None) -> tuple[int, int]:
    """Where the weight and the bias [n] of a norm lie."""
    for name, vector in (("weight", weight), ("bias", bias)):
        if vector is not None:
            check(name, vector, (n,))
    return at(weight), at(bias)


def at(x: Tensor | None) -> int:
    """Where its numbers lie; 0: there are none."""
    return 0 if x is None else x.data_ptr()


def check(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    """`ValueError` for what kernels cannot read as float32 of this shape."""
    if x.dtype is not torch.float32 or x.shape != shape or not x.is_cpu or not x.is_contiguous():
        raise ValueError(f"{name} must be contiguous float32 {list(shape)} on the CPU, not {x.dtype} {list(x.shape)}")


def _check_rows(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    if x.dtype is not torch.float32 or x.shape != shape or x.dim() != 3 or not x.is_cpu or x.stride(2) != 1:
        raise ValueError(
            f"{name} must be float32 {list(shape)} on the CPU, numbers side by side, not {x.dtype} {list(x.shape)}"
        )


def _cache(kv: KvLayer) -> Any:
    if kv.compiled is None:
        shape, scales = kv.shape, (at(kv.key_scales), at(kv.value_scales))
        args = shape.heads, shape.dk, shape.dv, kv.keys.data_ptr(), kv.values.data_ptr(), *scales
        kv.compiled = _cpu.Cache(_NUMBERS[kv.kind], *args)
    return kv.compiled
