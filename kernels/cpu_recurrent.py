"""The compiled recurrent layers behind checks: shapes, rows and slots are refused here in a sentence."""

from functools import cache as once
from typing import Any, NoReturn

import torch
from gmoe.kernels.cpu import _cpu
from gmoe.kernels.cpu_step import levels
from gmoe.kernels.reference_recurrent import ChannelRule, DeltaRule, KimiRule, SpaceRule
from gmoe.kernels.state import Paths, StateLayer
from torch import Tensor
from torch.nn.functional import pad

MOST_TAPS = 15


@once
def _step(level: str | None) -> Any:
    if level is not None and level not in levels():
        raise ValueError(f"this CPU has no kernel level {level!r}; it has {', '.join(levels())}")
    return _cpu.Step.named(level or levels()[-1])


class ShortConv:
    """Weights [C, taps + 1] and a bias [C] or None, laid out and checked once."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        if weight.dim() != 2 or weight.dtype is not torch.float32 or not weight.is_cpu:
            raise ValueError(f"weight must be float32 [C, taps + 1] on the CPU, not {weight.dtype} {_shape(weight)}")
        self.channels, self.taps = weight.shape[0], weight.shape[1] - 1
        if not 1 <= self.taps <= MOST_TAPS:
            raise ValueError(f"a convolution over {self.taps} earlier inputs; supported are 1 to {MOST_TAPS}")
        if bias is not None:
            _check_vector("bias", bias, self.channels)
        self._weight, self._bias = weight.t().contiguous(), bias

    def __call__(
        self,
        x: Tensor,
        state: StateLayer,
        paths: Paths,
        silu: bool,
        before: Tensor | None,
        after: Tensor | None,
        threads: int,
        level: str | None = None,
    ) -> Tensor:
        """x, before and after [T, C], parts of wider rows or not -> [T, C]."""
        shape = x.shape[0], self.channels
        rows = [_rows(name, part, shape) for name, part in (("x", x), ("before", before), ("after", after))]
        slots = state.inputs
        _check_rows_of_slots(slots, (self.taps, self.channels))
        y = torch.empty(shape)
        bias = 0 if self._bias is None else self._bias.data_ptr()
        known = self.channels, self.taps, silu, self._weight.data_ptr(), bias
        where = y.data_ptr(), shape[0], _cpu.Rows(slots.data_ptr(), slots.stride(1)), slots.shape[0]
        _cpu.short_conv(_step(level), *known, *rows, *where, _paths(paths), threads)
        return y


class DeltaNet:
    """A rule, checked once."""

    def __init__(self, rule: DeltaRule):
        r = rule
        if r.n_key < 1 or r.n_value % r.n_key:
            raise ValueError(f"{r.n_value} heads of values do not share {r.n_key} of keys evenly")
        for name, vector, n in (("a", r.a, r.n_value), ("dt_bias", r.dt_bias, r.n_value), ("norm", r.norm, None)):
            _check_vector(name, vector, n)
        self.rule, self.dv = rule, r.norm.shape[0]
        self._native = _cpu.DeltaRule(
            r.n_key, r.neighbours, r.a.data_ptr(), r.dt_bias.data_ptr(), r.norm.data_ptr(), r.eps, r.sigmoid
        )

    def __call__(
        self,
        qkv: Tensor,
        alpha: Tensor,
        beta: Tensor,
        z: Tensor,
        state: StateLayer,
        paths: Paths,
        threads: int,
        level: str | None = None,
    ) -> Tensor:
        """qkv, alpha, beta and z, parts of wider rows or not -> [T, n_value * dv]."""
        r, slots, tokens = self.rule, state.matrices, qkv.shape[0]
        shape = r.n_value, state.shape.dk, self.dv
        _check_slots(slots, shape)
        wide = r.n_value * self.dv
        rows = (
            _rows("qkv", qkv, (tokens, 2 * r.n_key * state.shape.dk + wide)),
            _rows("alpha", alpha, (tokens, r.n_value)),
            _rows("beta", beta, (tokens, r.n_value)),
            _rows("z", z, (tokens, wide)),
        )
        y = torch.empty(tokens, wide)
        where = y.data_ptr(), tokens, slots.data_ptr(), slots.shape[0]
        _cpu.delta_rule(_step(level), self._native, *shape, *rows, *where, _paths(paths), threads)
        return y


class KimiDelta:
    """A rule, checked once."""

    def __init__(self, rule: KimiRule):
        r = rule
        if r.n_head < 1 or not r.dt_bias.numel() or r.dt_bias.numel() % r.n_head:
            raise ValueError(f"{r.n_head} heads do not share dt_bias {_shape(r.dt_bias)} evenly")
        for name, vector, n in (
            ("a", r.a, r.n_head),
            ("dt_bias", r.dt_bias, r.dt_bias.numel()),
            ("norm", r.norm, None),
        ):
            _check_vector(name, vector, n)
        self.rule, self.dk, self.dv = rule, r.dt_bias.shape[0] // r.n_head, r.norm.shape[0]
        vectors = r.a.data_ptr(), r.dt_bias.data_ptr(), r.norm.data_ptr()
        self._native = _cpu.KimiRule(*vectors, r.eps, r.key_eps, r.floor)

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        fade: Tensor,
        beta: Tensor,
        gate: Tensor,
        state: StateLayer,
        paths: Paths,
        threads: int,
        level: str | None = None,
    ) -> Tensor:
        """q, k, v, fade, beta and gate, parts of wider rows or not -> [T, n_head * dv]."""
        heads, slots, tokens = self.rule.n_head, state.matrices, q.shape[0]
        shape = heads, self.dk, self.dv
        _check_slots(slots, shape)
        keys, wide = (tokens, heads * self.dk), (tokens, heads * self.dv)
        rows = (
            _rows("q", q, keys),
            _rows("k", k, keys),
            _rows("v", v, wide),
            _rows("fade", fade, keys),
            _rows("beta", beta, (tokens, heads)),
            _rows("gate", gate, wide),
        )
        y = torch.empty(wide)
        where = y.data_ptr(), tokens, slots.data_ptr(), slots.shape[0]
        _cpu.kimi_delta(_step(level), self._native, *shape, *rows, *where, _paths(paths), threads)
        return y


class StateSpace:
    """A rule, checked once."""

    def __init__(self, rule: SpaceRule):
        r = rule
        if r.n_group < 1 or r.n_head < 1 or r.n_head % r.n_group:
            raise ValueError(f"{r.n_head} heads do not share {r.n_group} groups evenly")
        wide = r.norm.numel() // r.n_head * r.n_head
        for name, vector in (("a", r.a), ("dt_bias", r.dt_bias), ("d", r.d)):
            _check_vector(name, vector, r.n_head)
        _check_vector("norm", r.norm, wide)
        self.rule, self.dv = rule, wide // r.n_head
        vectors = r.a.data_ptr(), r.dt_bias.data_ptr(), r.d.data_ptr(), r.norm.data_ptr()
        self._native = _cpu.SpaceRule(r.n_group, *vectors, r.eps)

    def __call__(
        self,
        xbc: Tensor,
        dt: Tensor,
        z: Tensor,
        state: StateLayer,
        paths: Paths,
        threads: int,
        level: str | None = None,
    ) -> Tensor:
        """xbc, dt and z, parts of wider rows or not -> [T, n_head * dv]."""
        r, slots, tokens = self.rule, state.matrices, xbc.shape[0]
        shape = r.n_head, state.shape.dk, self.dv
        _check_slots(slots, shape)
        wide = r.n_head * self.dv
        rows = (
            _rows("xbc", xbc, (tokens, wide + 2 * r.n_group * state.shape.dk)),
            _rows("dt", dt, (tokens, r.n_head)),
            _rows("z", z, (tokens, wide)),
        )
        y = torch.empty(tokens, wide)
        where = y.data_ptr(), tokens, slots.data_ptr(), slots.shape[0]
        _cpu.state_space(_step(level), self._native, *shape, *rows, *where, _paths(paths), threads)
        return y


class ChannelSpace:
    """A rule, laid out by block of sixteen channels and checked once."""

    def __init__(self, rule: ChannelRule):
        if rule.a.dim() != 2 or rule.a.dtype is not torch.float32 or not rule.a.is_cpu:
            raise ValueError(f"a must be float32 [C, dk] on the CPU, not {rule.a.dtype} {_shape(rule.a)}")
        self.channels, self.dk = rule.a.shape
        _check_vector("d", rule.d, self.channels)
        a = pad(rule.a, (0, 0, 0, -self.channels % 16)).view(-1, 16, self.dk)
        self._a, self._d = a.transpose(1, 2).contiguous(), rule.d

    def __call__(
        self,
        x: Tensor,
        dt: Tensor,
        b: Tensor,
        c: Tensor,
        z: Tensor,
        state: StateLayer,
        paths: Paths,
        threads: int,
        level: str | None = None,
    ) -> Tensor:
        """x, dt, b, c and z, parts of wider rows or not -> [T, C]."""
        slots, tokens = state.matrices, x.shape[0]
        _check_slots(slots, self._a.shape)
        wide, narrow = (tokens, self.channels), (tokens, self.dk)
        parts = ("x", x, wide), ("dt", dt, wide), ("b", b, narrow), ("c", c, narrow), ("z", z, wide)
        rows = [_rows(*part) for part in parts]
        y = torch.empty(wide)
        known = self.channels, self.dk, self._a.data_ptr(), self._d.data_ptr()
        where = y.data_ptr(), tokens, slots.data_ptr(), slots.shape[0]
        _cpu.channel_space(_step(level), *known, *rows, *where, _paths(paths), threads)
        return y


def _rows(name: str, x: Tensor | None, shape: tuple[int, int]) -> Any:
    if x is None:
        return _cpu.Rows(0, 0)
    side_by_side = x.dim() == 2 and (x.stride(1) == 1 or x.shape[1] == 1)
    if x.dtype is not torch.float32 or x.shape != shape or not x.is_cpu or not side_by_side:
        raise ValueError(
            f"{name} must be float32 {list(shape)} on the CPU, numbers side by side, not {x.dtype} {_shape(x)}"
        )
    return _cpu.Rows(x.data_ptr(), x.stride(0))


def _check_vector(name: str, x: Tensor, n: int | None) -> None:
    fits = x.dim() == 1 and n in (None, x.shape[0]) and x.is_contiguous()
    if not fits or x.dtype is not torch.float32 or not x.is_cpu:
        want = "dv" if n is None else n
        raise ValueError(f"{name} must be contiguous float32 [{want}] on the CPU, not {x.dtype} {_shape(x)}")


def _check_slots(slots: Tensor, shape: tuple[int, ...]) -> None:
    if slots.shape[1:] != shape or slots.dtype is not torch.float32 or not slots.is_cpu or not slots.is_contiguous():
        _refuse_slots(slots, shape)


def _check_rows_of_slots(slots: Tensor, shape: tuple[int, int]) -> None:
    """Their rows may be parts of wider ones."""
    apart = slots.dim() == 3 and slots.stride() == (shape[0] * slots.stride(1), slots.stride(1), 1)
    if slots.shape[1:] != shape or slots.dtype is not torch.float32 or not slots.is_cpu or not apart:
        _refuse_slots(slots, shape)


def _refuse_slots(slots: Tensor, shape: tuple[int, ...]) -> NoReturn:
    raise ValueError(
        f"the states' slots must be contiguous float32 {list(shape)} on the CPU, "
        f"not {slots.dtype} {list(slots.shape[1:])}"
    )


def _paths(paths: Paths) -> Any:
    sequences = paths.source.shape[0]
    for name, x in zip(Paths._fields, paths, strict=True):
        n = sequences + (x is paths.starts)
        if x.dtype is not torch.int32 or x.shape != (n,) or not x.is_cpu or not x.is_contiguous():
            raise ValueError(f"{name} must be contiguous int32 [{n}] on the CPU, not {x.dtype} {_shape(x)}")
    return _cpu.Paths(*(x.data_ptr() for x in paths), sequences)


def _shape(x: Tensor) -> list[int]:
    return list(x.shape)
