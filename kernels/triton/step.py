"""What a step does between products with weights, one launch each: norms, heads, and storing keys and values."""

import torch
import triton
import triton.language as tl
from gmoe.kernels.kv import BLOCK as _BLOCK
from gmoe.kernels.kv import GROUP as _GROUP
from gmoe.kernels.kv import KvLayer
from gmoe.kernels.reference_step import Norms, Turn
from gmoe.kernels.triton.matmul import FUSED
from torch import Tensor

BLOCK, GROUP = tl.constexpr(_BLOCK), tl.constexpr(_GROUP)
TO_INTEGER = tl.constexpr(12582912.0)  # 1.5 * 2**23: adding it leaves no bit for a fraction, halves go to even
EXACTLY = {"enable_fp_fusion": False}  # products and sums round for themselves, as the reference's


@triton.jit
def _norm(
    x, added, weight, bias, y, n, eps, scale,
    width: tl.constexpr, ADD: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """A row; ADD: of x + scale * added, which takes the place of what was added."""
    at = tl.program_id(0).to(tl.int64) * n
    i = tl.arange(0, width)
    value = tl.load(x + at + i, mask=i < n, other=0.0)
    if ADD:
        value += scale * tl.load(added + at + i, mask=i < n, other=0.0)
        tl.store(added + at + i, value, mask=i < n)
    value = value * tl.rsqrt(tl.sum(value * value) / n + eps)
    if WEIGHT:
        value *= tl.load(weight + i, mask=i < n, other=0.0)
    if BIAS:
        value += tl.load(bias + i, mask=i < n, other=0.0)
    tl.store(y + at + i, value, mask=i < n)


@triton.jit
def _normed(source, e, inside, root, weight, bias, WEIGHT: tl.constexpr, BIAS: tl.constexpr):
    value = tl.load(source + e, mask=inside, other=0.0) * root
    if WEIGHT:
        value *= tl.load(weight + e, mask=inside, other=0.0)
    if BIAS:
        value += tl.load(bias + e, mask=inside, other=0.0)
    return value


@triton.jit
def _head(
    source, target, weight, bias, eps, position, frequencies, d, pairs, magnitude,
    WIDTH: tl.constexpr, NORM: tl.constexpr, BIAS: tl.constexpr, ROTATE: tl.constexpr, NEOX: tl.constexpr,
):  # fmt: skip
    """A head's norm, then its rotation: element e of the rotated part with its partner, the rest as it is."""
    e = tl.arange(0, WIDTH)
    root = 1.0
    if NORM:
        x = tl.load(source + e, mask=e < d, other=0.0)
        root = tl.rsqrt(tl.sum(x * x) / d + eps)
    own = _normed(source, e, e < d, root, weight, bias, NORM, BIAS)
    if ROTATE:
        rotated = e < 2 * pairs
        if NEOX:
            second = e >= pairs
            pair, partner = e % pairs, tl.where(second, e - pairs, e + pairs)
        else:
            second = e % 2 == 1
            pair, partner = e // 2, e ^ 1
        other = _normed(source, partner, rotated, root, weight, bias, NORM, BIAS)
        angle = tl.load(position).to(tl.float32) * tl.load(frequencies + pair, mask=rotated, other=0.0)
        cos, sin = tl.cos(angle) * magnitude, tl.sin(angle) * magnitude
        turned = own * cos + tl.where(second, other * sin, -(other * sin))
        own = tl.where(rotated, turned, own)
    tl.store(target + e, own, mask=e < d)


@triton.jit
def _heads(
    q, k, q_out, k_out, positions, frequencies, q_weight, q_bias, k_weight, k_bias,
    q_row, q_head, k_row, k_head, H, HKV, d, pairs, magnitude, q_eps, k_eps, WIDTH: tl.constexpr,
    Q_NORM: tl.constexpr, Q_BIAS: tl.constexpr, K_NORM: tl.constexpr, K_BIAS: tl.constexpr,
    ROTATE: tl.constexpr, NEOX: tl.constexpr,
):  # fmt: skip
    """A program a head, those of the queries first."""
    t, h = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if h < H:
        _head(
            q + t * q_row + h * q_head, q_out + (t * H + h) * d, q_weight, q_bias, q_eps, positions + t,
            frequencies, d, pairs, magnitude, WIDTH, Q_NORM, Q_BIAS, ROTATE, NEOX,
        )  # fmt: skip
    else:
        h -= H
        _head(
            k + t * k_row + h * k_head, k_out + (t * HKV + h) * d, k_weight, k_bias, k_eps, positions + t,
            frequencies, d, pairs, magnitude, WIDTH, K_NORM, K_BIAS, ROTATE, NEOX,
        )  # fmt: skip


@triton.jit
def _codes(x):
    """[G, 32] float32 -> codes and the scale of each group, as `kv.KvLayer.write` rounds them."""
    scale = tl.div_rn(tl.max(tl.abs(x), 1), 127.0)
    inverse = tl.where(scale > 0.0, tl.div_rn(1.0, tl.where(scale > 0.0, scale, 1.0)), 0.0)
    return (x * inverse[:, None] + TO_INTEGER) - TO_INTEGER, scale


@triton.jit
def _as(x, target: tl.constexpr):
    """In the cache's type; to bfloat16 by its bits, which the interpreter would cut off instead of rounding."""
    if target == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        even = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).to(tl.float32, bitcast=True)
        x = tl.where(x == x, even, x)
    return x.to(target)


@triton.jit
def _store(
    keys, values, slots, key_cache, value_cache, key_scales, value_scales,
    key_row, key_head, value_row, value_head, HEADS,
    DK: tl.constexpr, DV: tl.constexpr, DK_GROUPS: tl.constexpr, DV_GROUPS: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    t, h = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = tl.load(slots + t)
    place, offset = slot // BLOCK * HEADS + h, slot % BLOCK
    g, i = tl.arange(0, DK_GROUPS), tl.arange(0, GROUP)
    e = g[:, None] * GROUP + i[None, :]
    value = tl.load(keys + t * key_row + h * key_head + e, mask=e < DK, other=0.0)
    GROUPS: tl.constexpr = (DK + GROUP - 1) // GROUP
    if SCALED:
        value, scale = _codes(value)
        tl.store(key_scales + (place * GROUPS + g) * BLOCK + offset, scale.to(tl.float16), mask=g < GROUPS)
    tl.store(key_cache + (place * DK + e) * BLOCK + offset, _as(value, key_cache.dtype.element_ty), mask=e < DK)
    g = tl.arange(0, DV_GROUPS)
    e = g[:, None] * GROUP + i[None, :]
    value = tl.load(values + t * value_row + h * value_head + e, mask=e < DV, other=0.0)
    V_GROUPS: tl.constexpr = (DV + GROUP - 1) // GROUP
    token = place * BLOCK + offset
    if SCALED:
        value, scale = _codes(value)
        tl.store(value_scales + token * V_GROUPS + g, scale.to(tl.float16), mask=g < V_GROUPS)
    tl.store(value_cache + token * DV + e, _as(value, value_cache.dtype.element_ty), mask=e < DV)


def rms_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """x [..., n] float32 / rms(x) * weight [n] + bias [n]."""
    return _norm_of(x.contiguous(), None, 1.0, weight, bias, eps)


def residual_norm(
    x: Tensor, y: Tensor, scale: float, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """x + scale * y of [T, n] float32, in the memory of y, and its `rms_norm`."""
    if x.shape != y.shape:
        raise ValueError(f"x {list(x.shape)} and y {list(y.shape)} do not fit")
    y = y.contiguous()
    return y, _norm_of(x.contiguous(), y, scale, weight, bias, eps)


def _norm_of(
    x: Tensor, added: Tensor | None, scale: float, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    y, n = torch.empty_like(x), x.shape[-1]
    if x.numel():
        width = triton.next_power_of_2(n)
        given = (x if v is None else v.contiguous() for v in (added, weight, bias))
        warps = min(16, max(1, width // 512))
        which = {"ADD": added is not None, "WEIGHT": weight is not None, "BIAS": bias is not None}
        _norm[(x.numel() // n,)](x, *given, y, n, eps, scale, width=width, num_warps=warps, **which, **FUSED)
    return y


def rotate(x: Tensor, positions: Tensor, frequencies: Tensor, magnitude: float, neox: bool) -> Tensor:
    """x [T, H, d] float32 with each head's first elements rotated by positions [T] * frequencies [n_rot / 2]."""
    return heads(x, x[:, :0], (None, None), positions, Turn(frequencies, magnitude, neox))[0]


def heads(q: Tensor, k: Tensor, norms: Norms, positions: Tensor, turn: Turn | None) -> tuple[Tensor, Tensor]:
    """q [T, H, d], k [T, Hkv, d] float32, each head normed by its rule's weight [d], then turned by positions [T]."""
    (tokens, n_head, d), n_kv = q.shape, k.shape[1]
    pairs = 0 if turn is None else len(turn.frequencies)
    if k.shape != (tokens, n_kv, d) or 2 * pairs > d or len(positions) != tokens:
        shapes = f"q {list(q.shape)}, k {list(k.shape)}"
        raise ValueError(f"{shapes}, {pairs} pairs and positions {list(positions.shape)} do not fit")
    q, k = (x if x.stride(2) == 1 else x.contiguous() for x in (q, k))
    out = [torch.empty(x.shape, dtype=torch.float32, device=x.device) for x in (q, k)]
    vectors, which, eps = [], [], []
    for rule in norms:
        if rule is not None and rule.weight.shape != (d,):
            raise ValueError(f"a norm of {list(rule.weight.shape)} does not fit heads of {d}")
        vectors += [q if rule is None or v is None else v.contiguous() for v in (rule or (None, None))[:2]]
        which += [rule is not None, rule is not None and rule.bias is not None]
        eps.append(0.0 if rule is None else rule.eps)
    if tokens and n_head + n_kv:
        frequencies, magnitude, neox = turn or (q, 1.0, False)
        strides = q.stride(0), q.stride(1), k.stride(0), k.stride(1)
        given = *strides, n_head, n_kv, d, pairs, magnitude, *eps
        flags = dict(zip(("Q_NORM", "Q_BIAS", "K_NORM", "K_BIAS"), which, strict=True))
        _heads[(tokens, n_head + n_kv)](
            q, k, *out, positions, frequencies, *vectors, *given, WIDTH=triton.next_power_of_2(d), **flags,
            ROTATE=turn is not None, NEOX=neox, num_warps=1, **EXACTLY,
        )  # fmt: skip
    return out[0], out[1]


def groups(dk: int, dv: int) -> dict[str, int]:
    """Powers of two that hold the groups of a key and of a value."""
    return {f"{name}_GROUPS": triton.next_power_of_2(-(-d // _GROUP)) for name, d in (("DK", dk), ("DV", dv))}


def store(kv: KvLayer, slots: Tensor, keys: Tensor, values: Tensor) -> None:
    """Write keys [T, heads, dk] and values [T, heads, dv] float32 at slots [T], bit for bit as `KvLayer.write`."""
    shape, tokens = kv.shape, len(slots)
    if keys.shape != (tokens, shape.heads, shape.dk) or values.shape != (tokens, shape.heads, shape.dv):
        raise ValueError(
            f"keys {list(keys.shape)} and values {list(values.shape)} do not fit {tokens} slots of {shape}"
        )
    if not tokens:
        return
    keys, values = (x if x.stride(2) == 1 else x.contiguous() for x in (keys, values))
    scaled = kv.key_scales is not None
    scales = (kv.key_scales, kv.value_scales) if scaled else (kv.keys, kv.values)
    strides = keys.stride(0), keys.stride(1), values.stride(0), values.stride(1)
    _store[(tokens, shape.heads)](
        keys, values, slots, kv.keys, kv.values, *scales, *strides, shape.heads,
        DK=shape.dk, DV=shape.dv, **groups(shape.dk, shape.dv), SCALED=scaled, num_warps=1, **EXACTLY,
    )  # fmt: skip
