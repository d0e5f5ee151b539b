"""Recurrent layers: a short convolution in one launch, a rule over matrices in two, the second for norms and gates.

A program goes through the tokens of a sequence, for some channels or some columns of a head's matrix.
"""

import torch
import triton
import triton.language as tl
from gmoe.kernels.reference_recurrent import DeltaRule, KimiRule, SpaceRule
from gmoe.kernels.state import Paths, StateLayer
from gmoe.kernels.triton.activation import softplus
from gmoe.kernels.triton.matmul import FUSED
from torch import Tensor

CHANNELS = 64  # of a program of the convolution
ROWS = 16  # that it takes at a time
BAND = 8  # columns of a matrix a program; a warp holds them, so that no sum waits for another
CONVOLVING = {"num_warps": 2, "enable_fp_fusion": False}  # the same bits for any number of rows
ALONE = {"num_warps": 1} | FUSED
TOGETHER = {"num_warps": 4} | FUSED  # over a group's heads


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _seen(
    x, before, slots, slot, begin, r, c, inside, x_row, before_row, slot_row, TAPS: tl.constexpr, BEFORE: tl.constexpr,
):  # fmt: skip
    """Rows r [R, 1] of what a convolution sees of channels c [1, W]: first what is kept, then what is new."""
    new = inside & (r >= TAPS)
    t = begin + r - TAPS
    value = tl.load(x + t * x_row + c, mask=new, other=0.0)
    if BEFORE:
        value *= tl.load(before + t * before_row + c, mask=new, other=0.0)
    kept = tl.where(slot >= 0, TAPS, 0)
    old = tl.load(slots + (slot * TAPS + r) * slot_row + c, mask=inside & (r < kept), other=0.0)
    return tl.where(r < TAPS, old, value)


@triton.jit
def _convolve(
    x, before, after, weight, bias, y, slots, starts, source, target, kept, kept_after, x_row, before_row, after_row,
    slot_row, C, TAPS: tl.constexpr, TAPS_WIDTH: tl.constexpr, R: tl.constexpr, W: tl.constexpr, SILU: tl.constexpr,
    BEFORE: tl.constexpr, AFTER: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    s = tl.program_id(0)
    c = tl.program_id(1) * W + tl.arange(0, W)
    begin, end = tl.load(starts + s).to(tl.int64), tl.load(starts + s + 1).to(tl.int64)
    slot = tl.load(source + s).to(tl.int64)
    columns = c[None, :]
    for at in range(begin, end, R):
        r = at - begin + tl.arange(0, R)[:, None]
        inside = (columns < C) & (begin + r < end)
        total = tl.zeros((R, W), tl.float32)
        for j in tl.static_range(TAPS + 1):
            seen = _seen(
                x, before, slots, slot, begin, r + j, columns, inside, x_row, before_row, slot_row, TAPS, BEFORE,
            )  # fmt: skip
            total += seen * tl.load(weight + c * (TAPS + 1) + j, mask=c < C, other=0.0)[None, :]
        if BIAS:
            total += tl.load(bias + c, mask=c < C, other=0.0)[None, :]
        if SILU:
            total *= _sigmoid(total)
        if AFTER:
            total *= tl.load(after + (begin + r) * after_row + columns, mask=inside, other=0.0)
        tl.store(y + (begin + r) * C + columns, total, mask=inside)
    j = tl.arange(0, TAPS_WIDTH)[:, None]
    to, also = tl.load(target + s).to(tl.int64), tl.load(kept + s).to(tl.int64)
    inside = (columns < C) & (j < TAPS)
    last = _seen(
        x, before, slots, slot, begin, end - begin + j, columns, inside, x_row, before_row, slot_row, TAPS, BEFORE,
    )  # fmt: skip
    some = tl.load(kept_after + s)
    other = _seen(x, before, slots, slot, begin, some + j, columns, inside, x_row, before_row, slot_row, TAPS, BEFORE)
    tl.debug_barrier()  # what is written may be what was read
    kept_rows, rows = tl.where((also >= 0) & (also != to), TAPS, 0), tl.where(to >= 0, TAPS, 0)
    tl.store(slots + (also * TAPS + j) * slot_row + columns, other, mask=(columns < C) & (j < kept_rows))
    tl.store(slots + (to * TAPS + j) * slot_row + columns, last, mask=(columns < C) & (j < rows))


@triton.jit
def _delta(
    qkv, alpha, beta, a, dt_bias, y, slots, starts, source, target, kept, kept_after, qkv_row, alpha_row, beta_row,
    eps, scale, N_KEY, N_VALUE, DK, DV,
    K_WIDTH: tl.constexpr, BAND: tl.constexpr, NEIGHBOURS: tl.constexpr,
):  # fmt: skip
    h, s = tl.program_id(1), tl.program_id(2)
    i, j = tl.arange(0, K_WIDTH), tl.program_id(0) * BAND + tl.arange(0, BAND)
    begin, end = tl.load(starts + s).to(tl.int64), tl.load(starts + s + 1).to(tl.int64)
    slot, to = tl.load(source + s).to(tl.int64), tl.load(target + s).to(tl.int64)
    also, some = tl.load(kept + s).to(tl.int64), tl.load(kept_after + s)
    place = slots + h.to(tl.int64) * DK * DV + i[:, None] * DV + j[None, :]
    row, inside = i[:, None], j[None, :] < DV
    size = tl.cast(DK, tl.int64) * DV * N_VALUE
    matrix = tl.load(place + slot * size, mask=inside & (row < tl.where(slot >= 0, DK, 0)), other=0.0)
    tl.debug_barrier()  # what is written may be what was read
    head = h // (N_VALUE // N_KEY) if NEIGHBOURS else h % N_KEY
    rate, bias = tl.load(a + h), tl.load(dt_bias + h)
    for t in range(begin, end):
        given = qkv + t * qkv_row
        q = tl.load(given + head * DK + i, mask=i < DK, other=0.0)
        k = tl.load(given + (N_KEY + head) * DK + i, mask=i < DK, other=0.0)
        v = tl.load(given + 2 * N_KEY * DK + h * DV + j, mask=j < DV, other=0.0)
        q *= tl.rsqrt(tl.sum(q * q, 0) + eps) * scale
        k *= tl.rsqrt(tl.sum(k * k, 0) + eps)
        matrix *= tl.exp(softplus(tl.load(alpha + t * alpha_row + h) + bias) * rate)
        change = _sigmoid(tl.load(beta + t * beta_row + h)) * (v - tl.sum(matrix * k[:, None], 0))
        matrix += k[:, None] * change[None, :]
        tl.store(y + (t * N_VALUE + h) * DV + j, tl.sum(matrix * q[:, None], 0), mask=j < DV)
        now = (also >= 0) & (t - begin + 1 == some)
        tl.store(place + also * size, matrix, mask=inside & (row < tl.where(now, DK, 0)))
    tl.store(place + to * size, matrix, mask=inside & (row < tl.where(to >= 0, DK, 0)))


@triton.jit
def _kimi(
    q, k, v, fade, beta, a, dt_bias, y, slots, starts, source, target, kept, kept_after, q_row, k_row, v_row, fade_row,
    beta_row, eps, floor, scale, N_HEAD, DK, DV, K_WIDTH: tl.constexpr, BAND: tl.constexpr,
):  # fmt: skip
    h, s = tl.program_id(1), tl.program_id(2)
    i, j = tl.arange(0, K_WIDTH), tl.program_id(0) * BAND + tl.arange(0, BAND)
    begin, end = tl.load(starts + s).to(tl.int64), tl.load(starts + s + 1).to(tl.int64)
    slot, to = tl.load(source + s).to(tl.int64), tl.load(target + s).to(tl.int64)
    also, some = tl.load(kept + s).to(tl.int64), tl.load(kept_after + s)
    place = slots + h.to(tl.int64) * DK * DV + i[:, None] * DV + j[None, :]
    row, inside = i[:, None], j[None, :] < DV
    size = tl.cast(DK, tl.int64) * DV * N_HEAD
    matrix = tl.load(place + slot * size, mask=inside & (row < tl.where(slot >= 0, DK, 0)), other=0.0)
    tl.debug_barrier()  # what is written may be what was read
    rate, bias, at = tl.load(a + h), tl.load(dt_bias + h * DK + i, mask=i < DK, other=0.0), h * DK + i
    for t in range(begin, end):
        query = tl.load(q + t * q_row + at, mask=i < DK, other=0.0)
        key = tl.load(k + t * k_row + at, mask=i < DK, other=0.0)
        value = tl.load(v + t * v_row + h * DV + j, mask=j < DV, other=0.0)
        step = tl.load(fade + t * fade_row + at, mask=i < DK, other=0.0) + bias
        query *= tl.rsqrt(tl.sum(query * query, 0) + eps) * scale
        key *= tl.rsqrt(tl.sum(key * key, 0) + eps)
        matrix *= tl.exp(tl.where(floor < 0, _sigmoid(-step * rate) * floor, softplus(step) * rate))[:, None]
        change = _sigmoid(tl.load(beta + t * beta_row + h)) * (value - tl.sum(matrix * key[:, None], 0))
        matrix += key[:, None] * change[None, :]
        tl.store(y + (t * N_HEAD + h) * DV + j, tl.sum(matrix * query[:, None], 0), mask=j < DV)
        now = (also >= 0) & (t - begin + 1 == some)
        tl.store(place + also * size, matrix, mask=inside & (row < tl.where(now, DK, 0)))
    tl.store(place + to * size, matrix, mask=inside & (row < tl.where(to >= 0, DK, 0)))


@triton.jit
def _gate(y, z, weight, z_row, eps, N_VALUE, DV, WIDTH: tl.constexpr, SILU: tl.constexpr):
    """A head of a token: its norm, its weight and the gate's SiLU or sigmoid, in place."""
    t, h = tl.program_id(0).to(tl.int64), tl.program_id(1)
    j = tl.arange(0, WIDTH)
    at = (t * N_VALUE + h) * DV + j
    value = tl.load(y + at, mask=j < DV, other=0.0)
    gate = tl.load(z + t * z_row + h * DV + j, mask=j < DV, other=0.0)
    value *= tl.rsqrt(tl.sum(value * value, 0) / DV + eps) * tl.load(weight + j, mask=j < DV, other=0.0)
    much = _sigmoid(gate)
    tl.store(y + at, value * (gate * much if SILU else much), mask=j < DV)


@triton.jit
def _space(
    xbc, dt, a, dt_bias, d, y, slots, starts, source, target, kept, kept_after, xbc_row, dt_row,
    N_GROUP, N_HEAD, DK, DV, K_WIDTH: tl.constexpr, BAND: tl.constexpr,
):  # fmt: skip
    h, s = tl.program_id(1), tl.program_id(2)
    i, j = tl.arange(0, K_WIDTH), tl.program_id(0) * BAND + tl.arange(0, BAND)
    begin, end = tl.load(starts + s).to(tl.int64), tl.load(starts + s + 1).to(tl.int64)
    slot, to = tl.load(source + s).to(tl.int64), tl.load(target + s).to(tl.int64)
    also, some = tl.load(kept + s).to(tl.int64), tl.load(kept_after + s)
    place = slots + h.to(tl.int64) * DK * DV + i[:, None] * DV + j[None, :]
    row, inside = i[:, None], j[None, :] < DV
    size = tl.cast(DK, tl.int64) * DV * N_HEAD
    matrix = tl.load(place + slot * size, mask=inside & (row < tl.where(slot >= 0, DK, 0)), other=0.0)
    tl.debug_barrier()  # what is written may be what was read
    group = h // (N_HEAD // N_GROUP)
    rate, bias, much = tl.load(a + h), tl.load(dt_bias + h), tl.load(d + h)
    for t in range(begin, end):
        given = xbc + t * xbc_row
        x = tl.load(given + h * DV + j, mask=j < DV, other=0.0)
        b = tl.load(given + N_HEAD * DV + group * DK + i, mask=i < DK, other=0.0)
        c = tl.load(given + N_HEAD * DV + (N_GROUP + group) * DK + i, mask=i < DK, other=0.0)
        step = softplus(tl.load(dt + t * dt_row + h) + bias)
        matrix = matrix * tl.exp(step * rate) + b[:, None] * (step * x)[None, :]
        tl.store(y + (t * N_HEAD + h) * DV + j, tl.sum(matrix * c[:, None], 0) + much * x, mask=j < DV)
        now = (also >= 0) & (t - begin + 1 == some)
        tl.store(place + also * size, matrix, mask=inside & (row < tl.where(now, DK, 0)))
    tl.store(place + to * size, matrix, mask=inside & (row < tl.where(to >= 0, DK, 0)))


@triton.jit
def _gate_group(y, z, weight, z_row, eps, N_GROUP, SIZE, WIDTH: tl.constexpr):
    """A group's heads of a token: the gate, then the norm over all of them and its weight, in place."""
    t, g = tl.program_id(0).to(tl.int64), tl.program_id(1)
    j = tl.arange(0, WIDTH)
    at = (t * N_GROUP + g) * SIZE + j
    gate = tl.load(z + t * z_row + g * SIZE + j, mask=j < SIZE, other=0.0)
    value = tl.load(y + at, mask=j < SIZE, other=0.0) * (gate * _sigmoid(gate))
    value *= tl.rsqrt(tl.sum(value * value, 0) / SIZE + eps)
    tl.store(y + at, value * tl.load(weight + g * SIZE + j, mask=j < SIZE, other=0.0), mask=j < SIZE)


def short_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: StateLayer,
    paths: Paths,
    silu: bool,
    before: Tensor | None,
    after: Tensor | None,
) -> Tensor:
    """y = after * f(conv(before * x) + bias) [T, C] float32, f the SiLU or nothing; see `recurrent.ShortConv`."""
    (tokens, channels), taps = x.shape, weight.shape[1] - 1
    others = [part for part in (before, after) if part is not None]
    if weight.shape[0] != channels or state.inputs.shape[1:] != (taps, channels) or taps < 1:
        shapes = f"weights {list(weight.shape)} and slots {list(state.inputs.shape[1:])}"
        raise ValueError(f"x {list(x.shape)}, {shapes} do not fit")
    if bias is not None and bias.shape != (channels,):
        raise ValueError(f"x {list(x.shape)} and a bias of {list(bias.shape)} do not fit")
    if any(part.shape != x.shape for part in others):
        raise ValueError(f"x {list(x.shape)} and {' and '.join(str(list(part.shape)) for part in others)} do not fit")
    sequences = _sequences(paths)
    y = torch.empty(tokens, channels, dtype=torch.float32, device=x.device)
    if not sequences:
        return y
    which = {"BEFORE": before is not None, "AFTER": after is not None, "BIAS": bias is not None}
    bias = weight if bias is None else bias.contiguous()
    parts = [x if part is None else _side_by_side(part) for part in (x, before, after)]
    rows = *(part.stride(0) for part in parts), state.inputs.stride(1)
    given = *parts, weight.contiguous(), bias, y, state.inputs, *paths, *rows, channels
    _convolve[(sequences, triton.cdiv(channels, CHANNELS))](
        *given, SILU=silu, **which, **conv_sizes(taps, tokens > sequences), **CONVOLVING
    )
    return y


def conv_sizes(taps: int, many: bool) -> dict[str, int]:
    """What a convolution is compiled for, `many`: some sequence has more rows than one."""
    return {"TAPS": taps, "TAPS_WIDTH": triton.next_power_of_2(taps), "R": ROWS if many else 1, "W": CHANNELS}


def delta_rule(
    qkv: Tensor, alpha: Tensor, beta: Tensor, z: Tensor, rule: DeltaRule, state: StateLayer, paths: Paths
) -> Tensor:
    """-> [T, n_value * dv] float32; see `recurrent.DeltaNet`."""
    tokens, (heads, dk, dv) = qkv.shape[0], state.matrices.shape[1:]
    wide = heads * dv
    if rule.n_key < 1 or heads != rule.n_value or heads % rule.n_key or rule.norm.shape != (dv,):
        many = f"{rule.n_key} heads of keys, {rule.n_value} of values and a norm of {list(rule.norm.shape)}"
        raise ValueError(f"{many} do not fit slots {[heads, dk, dv]}")
    _check_rows(tokens, qkv=(qkv, 2 * rule.n_key * dk + wide), alpha=(alpha, heads), beta=(beta, heads), z=(z, wide))
    sequences = _sequences(paths)
    y = torch.empty(tokens, wide, dtype=torch.float32, device=qkv.device)
    if not sequences:
        return y
    qkv, alpha, beta, z = (_side_by_side(part) for part in (qkv, alpha, beta, z))
    rates = rule.a.contiguous(), rule.dt_bias.contiguous()
    rows = qkv.stride(0), alpha.stride(0), beta.stride(0)
    _delta[(triton.cdiv(dv, BAND), heads, sequences)](
        qkv, alpha, beta, *rates, y, state.matrices, *paths, *rows, rule.eps, dk**-0.5, rule.n_key, heads, dk, dv,
        **delta_sizes(dk, rule.neighbours), **ALONE,
    )  # fmt: skip
    if tokens:
        weight, sizes = rule.norm.contiguous(), gate_sizes(dv, silu=not rule.sigmoid)
        _gate[(tokens, heads)](y, z, weight, z.stride(0), rule.eps, heads, dv, **sizes, **ALONE)
    return y


def delta_sizes(dk: int, neighbours: bool) -> dict[str, int | bool]:
    """What a delta rule is compiled for."""
    return {"K_WIDTH": triton.next_power_of_2(dk), "BAND": BAND, "NEIGHBOURS": neighbours}


def gate_sizes(dv: int, silu: bool = True) -> dict[str, int | bool]:
    """What the gate of a delta rule's heads is compiled for."""
    return {"WIDTH": triton.next_power_of_2(dv), "SILU": silu}


def kimi_delta(
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
    """-> [T, n_head * dv] float32; see `recurrent.KimiDelta`."""
    tokens, (heads, dk, dv) = q.shape[0], state.matrices.shape[1:]
    keys, wide = heads * dk, heads * dv
    if heads != rule.n_head or rule.dt_bias.shape != (keys,) or rule.norm.shape != (dv,):
        what = f"{rule.n_head} heads, a dt_bias of {list(rule.dt_bias.shape)} and a norm of {list(rule.norm.shape)}"
        raise ValueError(f"{what} do not fit slots {[heads, dk, dv]}")
    _check_rows(tokens, q=(q, keys), k=(k, keys), v=(v, wide), fade=(fade, keys), beta=(beta, heads), gate=(gate, wide))
    sequences = _sequences(paths)
    y = torch.empty(tokens, wide, dtype=torch.float32, device=q.device)
    if not sequences:
        return y
    *parts, gate = (_side_by_side(part) for part in (q, k, v, fade, beta, gate))
    _kimi[(triton.cdiv(dv, BAND), heads, sequences)](
        *parts, rule.a.contiguous(), rule.dt_bias.contiguous(), y, state.matrices, *paths,
        *(part.stride(0) for part in parts), rule.key_eps, rule.floor, dk**-0.5, heads, dk, dv,
        **rule_sizes(dk), **ALONE,
    )  # fmt: skip
    if tokens:
        weight, sizes = rule.norm.contiguous(), gate_sizes(dv, silu=False)
        _gate[(tokens, heads)](y, gate, weight, gate.stride(0), rule.eps, heads, dv, **sizes, **ALONE)
    return y


def state_space(xbc: Tensor, dt: Tensor, z: Tensor, rule: SpaceRule, state: StateLayer, paths: Paths) -> Tensor:
    """-> [T, n_head * dv] float32; see `recurrent.StateSpace`."""
    tokens, (heads, dk, dv) = xbc.shape[0], state.matrices.shape[1:]
    wide = heads * dv
    if rule.n_group < 1 or heads != rule.n_head or heads % rule.n_group or rule.norm.shape != (wide,):
        many = f"{rule.n_group} groups of {rule.n_head} heads and a norm of {list(rule.norm.shape)}"
        raise ValueError(f"{many} do not fit slots {[heads, dk, dv]}")
    _check_rows(tokens, xbc=(xbc, wide + 2 * rule.n_group * dk), dt=(dt, heads), z=(z, wide))
    sequences = _sequences(paths)
    y = torch.empty(tokens, wide, dtype=torch.float32, device=xbc.device)
    if not sequences:
        return y
    xbc, dt, z = (_side_by_side(part) for part in (xbc, dt, z))
    of_heads = rule.a.contiguous(), rule.dt_bias.contiguous(), rule.d.contiguous()
    _space[(triton.cdiv(dv, BAND), heads, sequences)](
        xbc, dt, *of_heads, y, state.matrices, *paths, xbc.stride(0), dt.stride(0), rule.n_group, heads, dk, dv,
        **rule_sizes(dk), **ALONE,
    )  # fmt: skip
    if tokens:
        size, weight = wide // rule.n_group, rule.norm.contiguous()
        _gate_group[(tokens, rule.n_group)](
            y, z, weight, z.stride(0), rule.eps, rule.n_group, size, WIDTH=triton.next_power_of_2(size), **TOGETHER
        )
    return y


def rule_sizes(dk: int) -> dict[str, int]:
    """What Kimi's delta attention and a state space are compiled for."""
    return {"K_WIDTH": triton.next_power_of_2(dk), "BAND": BAND}


def _check_rows(tokens: int, **parts: tuple[Tensor, int]) -> None:
    for name, (part, columns) in parts.items():
        if part.shape != (tokens, columns):
            raise ValueError(f"{name} {list(part.shape)} must be {[tokens, columns]}")


def _side_by_side(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 else x.contiguous()


def _sequences(paths: Paths) -> int:
    sequences = len(paths.source)
    for name, x in zip(Paths._fields, paths, strict=True):
        n = sequences + (name == "starts")
        if x.dtype is not torch.int32 or x.shape != (n,) or not x.is_contiguous():
            raise ValueError(f"{name} must be contiguous int32 [{n}], not {x.dtype} {list(x.shape)}")
    return sequences
