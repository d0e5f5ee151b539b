"""Attention over the paged cache: a step's rows against keys and values read in place, the context in parts."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from gmoe.kernels import reference_step
from gmoe.kernels.kv import BLOCK as _BLOCK
from gmoe.kernels.kv import GROUP as _GROUP
from gmoe.kernels.kv import KvLayer
from gmoe.kernels.reference_step import Mask, Turns
from gmoe.kernels.triton.matmul import FUSED, shared_memory
from gmoe.kernels.triton.tuned import SHIPPED, Choices, key
from torch import Tensor

BLOCK, GROUP = tl.constexpr(_BLOCK), tl.constexpr(_GROUP)
SIGHTS = {"causal": 0, "sliding": 1, "chunked": 2}
FEW = 16  # rows of a step up to which the context is cut into short parts; more rows fill a card by themselves
MERGED = 8192  # elements of parts that are added at once
SEQUENCES = 64  # of a step; one kernel serves all that have not more
WIDE_FLOATS = 106496  # bytes of fast memory


class Tiles(NamedTuple):
    """What a program takes: heads that share keys, rows (queries x heads), keys a turn, keys in all (0: every one)."""

    heads: int
    rows: int
    keys: int
    split: int
    num_warps: int
    num_stages: int


def tiles(group: int, width: int, rows: int, one: bool, floats: bool = False) -> Tiles:
    """The shipped choice for `group` heads a key head, keys and values of at most `width` elements, and `rows`.

    `one`: each row is another sequence's; `floats`: the cache is float32. Fast memory: at most 96 KiB, but for float32
    wider than 256, which `WIDE_FLOATS` bytes hold.
    """
    wide = width > 256
    if rows <= FEW or one:
        split, stages = 128 if rows <= FEW else 1024, 1 if wide or (floats and width > 128) else 2
        return Tiles(min(triton.next_power_of_2(group), 16), 16, 16 if wide else 32, split, 8 if wide else 4, stages)
    m = 16 if wide else 32 if width > 128 else 64
    return Tiles(min(triton.next_power_of_2(group), m), m, 16 if wide else 32, 0, 4, 1)


def key_of(cache: str, group: int, dk: int, dv: int, rows: int, one: bool) -> str:
    """Under which a choice of tiles is kept."""
    return key("attention", cache, group, dk, dv, 1 if rows <= FEW else 2 if one else 4)


@triton.jit
def _first_seen(position, size, SIGHT: tl.constexpr):
    """The first key that a query sees."""
    if SIGHT == 0:
        return position * 0
    elif SIGHT == 1:
        return tl.maximum(position - size + 1, 0)
    else:
        return position // size * size


@triton.jit
def _queries(q, row, head, inside, H, FIRST: tl.constexpr, WIDTH: tl.constexpr, DK: tl.constexpr):
    """Elements FIRST .. FIRST + WIDTH of some heads' queries, float32 [M, WIDTH]."""
    d = FIRST + tl.arange(0, WIDTH)
    at = (row.to(tl.int64) * H + head) * DK
    return tl.load(q + at[:, None] + d[None, :], mask=inside[:, None] & (d < DK)[None, :], other=0.0)


@triton.jit
def _keys(
    keys, scales, place, offset,
    FIRST: tl.constexpr, WIDTH: tl.constexpr, DK: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """Elements FIRST .. FIRST + WIDTH of the keys `offset` [N] of one block and head -> float32 [WIDTH, N].

    What has not been written yet is read as well: no mask cuts the loads.
    """
    d = FIRST + tl.arange(0, WIDTH)
    at = (d * BLOCK)[:, None] + offset[None, :]
    if FIRST + WIDTH > DK:
        inside = tl.broadcast_to((d < DK)[:, None], at.shape)
        value = tl.load(keys + place * (DK * BLOCK) + at, mask=inside, other=0)
    else:
        value = tl.load(keys + place * (DK * BLOCK) + at)
    value = value.to(tl.float32)
    if SCALED:
        GROUPS: tl.constexpr = (DK + GROUP - 1) // GROUP
        at = (tl.minimum(d // GROUP, GROUPS - 1) * BLOCK)[:, None] + offset[None, :]
        value *= tl.load(scales + place * (GROUPS * BLOCK) + at).to(tl.float32)
    return value


@triton.jit
def _values(values, scales, place, offset, there, WIDTH: tl.constexpr, DV: tl.constexpr, SCALED: tl.constexpr):
    """The values `offset` [N] of one block and head, where `there`, else zeros -> float32 [N, WIDTH]."""
    d = tl.arange(0, WIDTH)
    inside = there[:, None] & (d < DV)[None, :]
    at = offset[:, None] * DV + d[None, :]
    value = tl.load(values + place * (BLOCK * DV) + at, mask=inside, other=0).to(tl.float32)
    if SCALED:
        GROUPS: tl.constexpr = (DV + GROUP - 1) // GROUP
        at = offset[:, None] * GROUPS + (d // GROUP)[None, :]
        value *= tl.load(scales + place * (BLOCK * GROUPS) + at, mask=inside, other=0.0).to(tl.float32)
    return value


@triton.jit
def _dot(a, b, total, EXACT: tl.constexpr):
    """total + a @ b; `EXACT`: b's elements are TF32 as they are, so that two products say what three else would."""
    if EXACT:
        high = (a.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
        total = tl.dot(high, b, total, input_precision="tf32")
        return tl.dot(a - high, b, total, input_precision="tf32")
    else:
        return tl.dot(a, b, total, input_precision="tf32x3")


@triton.jit(do_not_specialize=["T", "S", "table_width", "size"])
def _attend(
    q, keys, values, key_scales, value_scales, tables, positions, starts, sinks, out, best, total,
    T, S, H, HKV, per_head, table_width, size, scale, cap,
    DK: tl.constexpr, DV: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, WIDTH: tl.constexpr,
    SEQUENCES: tl.constexpr, HEADS: tl.constexpr, M: tl.constexpr, N: tl.constexpr, SPLIT: tl.constexpr,
    SIGHT: tl.constexpr, SCALED: tl.constexpr, SINKS: tl.constexpr, CAPPED: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    tl.static_assert(N <= BLOCK)
    QUERIES: tl.constexpr = M // HEADS
    tile = tl.program_id(0)
    if SEQUENCES == 0:  # every sequence has one row
        sequence, begin, end = tile, tile, tile + 1
    else:  # sequence s has its tiles from starts[s] // QUERIES + s on
        every = tl.arange(0, SEQUENCES)
        first_row = tl.load(starts + every, mask=every < S, other=T)
        sequence = tl.sum(((first_row // QUERIES + every <= tile) & (every < S)).to(tl.int32)) - 1
        begin = tl.load(starts + sequence)
        end = tl.load(starts + sequence + 1)
        begin += (tile - (begin // QUERIES + sequence)) * QUERIES
    if begin < end:
        tiles_a_head = (per_head + HEADS - 1) // HEADS
        kv_head = tl.program_id(1) // tiles_a_head
        r = tl.arange(0, M)
        in_group = tl.program_id(1) % tiles_a_head * HEADS + r % HEADS
        row = begin + r // HEADS
        inside = (in_group < per_head) & (row < end)
        head = kv_head * per_head + in_group
        position = tl.load(positions + row, mask=row < end, other=-1).to(tl.int32)  # [M]
        nearest = tl.load(positions + begin).to(tl.int32)
        last = tl.max(position)
        at = _first_seen(nearest, size, SIGHT) // N * N
        stop = last + 1
        if SPLIT:
            at = tl.maximum(at, tl.program_id(2) * SPLIT)
            stop = tl.minimum(stop, tl.program_id(2) * SPLIT + SPLIT)
        if at < stop:
            q1 = _queries(q, row, head, inside, H, 0, D1, DK)
            if D2:
                q2 = _queries(q, row, head, inside, H, D1, D2, DK)
            lowest = _first_seen(position, size, SIGHT)
            peak = tl.full((M,), float("-inf"), tl.float32)
            weight = tl.zeros((M,), tl.float32)
            mixed = tl.zeros((M, WIDTH), tl.float32)
            for n in range(at, stop, N):
                key = n + tl.arange(0, N)
                place = tl.load(tables + sequence * table_width + n // BLOCK).to(tl.int64) * HKV + kv_head
                offset = tl.arange(0, N)
                if N < BLOCK:
                    offset += n - n // BLOCK * BLOCK
                k = _keys(keys, key_scales, place, offset, 0, D1, DK, SCALED)
                scores = _dot(q1, k, tl.zeros((M, N), tl.float32), EXACT)
                if D2:
                    k = _keys(keys, key_scales, place, offset, D1, D2, DK, SCALED)
                    scores = _dot(q2, k, scores, EXACT)
                seen = (key[None, :] <= position[:, None]) & (key[None, :] >= lowest[:, None])
                scores = scores * scale
                if CAPPED:
                    scores = cap * (2.0 * tl.sigmoid(2.0 * scores / cap) - 1.0)
                scores = tl.where(seen, scores, float("-inf"))
                higher = tl.maximum(peak, tl.max(scores, 1))
                base = tl.where(higher == float("-inf"), 0.0, higher)  # nothing seen yet
                shrink = tl.exp(peak - base)
                p = tl.exp(scores - base[:, None])
                v = _values(values, value_scales, place, offset, key <= last, WIDTH, DV, SCALED)
                mixed = _dot(p, v, mixed * shrink[:, None], EXACT)
                weight = weight * shrink + tl.sum(p, 1)
                peak = higher
            d = tl.arange(0, WIDTH)
            place = row.to(tl.int64) * H + head
            kept = inside[:, None] & (d < DV)[None, :]
            if SPLIT:
                place += tl.program_id(2).to(tl.int64) * T * H
                tl.store(best + place, peak, mask=inside)
                tl.store(total + place, weight, mask=inside)
            else:
                if SINKS:
                    sink = tl.load(sinks + head, mask=inside, other=0.0)
                    higher = tl.maximum(peak, sink)
                    shrink = tl.exp(peak - higher)
                    mixed = mixed * shrink[:, None]
                    weight = weight * shrink + tl.exp(sink - higher)
                mixed = mixed / tl.where(weight > 0.0, weight, 1.0)[:, None]
            tl.store(out + place[:, None] * DV + d[None, :], mixed, mask=kept)


@triton.jit(do_not_specialize=["T", "size"])
def _merge(
    parts, best, total, positions, sinks, out, T, H, size,
    DV: tl.constexpr, WIDTH: tl.constexpr, SPLIT: tl.constexpr, AT_ONCE: tl.constexpr,
    SIGHT: tl.constexpr, SINKS: tl.constexpr,
):  # fmt: skip
    """The parts that a row sees, summed from the first to the last."""
    t, h = tl.program_id(0), tl.program_id(1)
    position = tl.load(positions + t).to(tl.int32)
    d = tl.arange(0, WIDTH)
    mixed = tl.zeros((WIDTH,), tl.float32)
    weight = 0.0
    peak = float("-inf")
    if SINKS:
        peak = tl.load(sinks + h)
        weight = 1.0
    first, past = _first_seen(position, size, SIGHT) // SPLIT, position // SPLIT + 1
    for n in range(first // AT_ONCE * AT_ONCE, past, AT_ONCE):
        part = n + tl.arange(0, AT_ONCE)
        inside = (part >= first) & (part < past)
        place = (part.to(tl.int64) * T + t) * H + h
        its = tl.load(best + place, mask=inside, other=float("-inf"))
        higher = tl.maximum(peak, tl.max(its, 0))
        shrink, share = tl.exp(peak - higher), tl.exp(its - higher)
        some = tl.load(parts + place[:, None] * DV + d[None, :], mask=inside[:, None] & (d < DV)[None, :], other=0.0)
        mixed = mixed * shrink + tl.sum(some * share[:, None], 0)
        weight = weight * shrink + tl.sum(tl.load(total + place, mask=inside, other=0.0) * share, 0)
        peak = higher
    tl.store(out + (t.to(tl.int64) * H + h) * DV + d, mixed / weight, mask=d < DV)


def widths(dk: int, dv: int) -> dict[str, int]:
    """Powers of two that hold a key in two pieces, the second perhaps empty, and a value in one."""
    first = max(16, 1 << (dk.bit_length() - 1))
    second = max(16, triton.next_power_of_2(dk - first)) if dk > first else 0
    return {"DK": dk, "DV": dv, "D1": first, "D2": second, "WIDTH": max(16, triton.next_power_of_2(dv))}


def at_once(width: int) -> int:
    """Parts of a row that are merged at once: as many as threads hold, whose values of a head take `width` elements."""
    return min(64, MERGED // width)


def attention(
    q: Tensor,
    kv: KvLayer,
    turns: Turns,
    scale: float,
    mask: Mask,
    sinks: Tensor | None,
    how: Tiles | None = None,
    choices: Choices = SHIPPED,
    cap: float = 0.0,
) -> Tensor:
    """q [T, H, dk] float32 over the cache -> [T, H, dv]; `sinks` [H] are logits that take part and carry no value.

    Scores, but for these, become cap * tanh(score / cap) where `cap` is not 0. `turns.context_lens` and
    `query_starts` are on the CPU and say how much is launched; all else is on q's device.
    Sums are float32, over keys in order and cut at fixed positions; where, depends on whether a step has more than 16
    rows and whether each is another sequence's, and on nothing else that runs beside a row.
    """
    rows, heads, dk = q.shape
    shape, longest = kv.shape, int(turns.context_lens.max()) if len(turns.context_lens) else 0
    if dk != shape.dk or heads % shape.heads or len(turns.positions) != rows:
        raise ValueError(f"queries {list(q.shape)} do not fit {shape.heads} heads of {shape.dk}")
    out = torch.empty(rows, heads, shape.dv, dtype=torch.float32, device=q.device)
    if not rows:
        return out
    n_sequences, per_head = len(turns.block_tables), heads // shape.heads
    one = rows == n_sequences
    width, floats = max(dk, shape.dv), kv.kind == "f32"
    if floats and width > 256 and 0 < shared_memory(q.device) < WIDE_FLOATS:
        if q.is_cuda and torch.cuda.is_current_stream_capturing():  # what torch does hangs on the context's length
            raise RuntimeError("a float32 cache this wide takes more fast memory than the card has")
        return reference_step.attention(q, kv, turns, scale, mask, sinks, cap)
    name = key_of(kv.kind, per_head, dk, shape.dv, rows, one)
    how = how or choices.of(name, tiles(per_head, width, rows, one, floats))
    queries, parts = how.rows // how.heads, -(-longest // how.split) if how.split else 1
    starts = turns.positions if one else turns.starts  # read where sequences have several rows
    if starts is None:
        starts = turns.query_starts.to(q.device)  # waits for the device
    n_tiles = rows if one else rows // queries + n_sequences
    mixed, best, total = out, out, out
    if how.split:
        mixed = torch.empty(parts, rows, heads, shape.dv, dtype=torch.float32, device=q.device)
        best, total = torch.empty(2, parts, rows, heads, dtype=torch.float32, device=q.device)
    scaled = kv.key_scales is not None
    key_scales, value_scales = (kv.key_scales, kv.value_scales) if scaled else (kv.keys, kv.values)
    same: dict[str, Any] = {"SIGHT": SIGHTS[mask.kind], "SINKS": sinks is not None}
    sink = q if sinks is None else sinks.contiguous()
    d = widths(dk, shape.dv)
    _attend[(n_tiles, shape.heads * -(-per_head // how.heads), parts)](
        q.contiguous(), kv.keys, kv.values, key_scales, value_scales, turns.block_tables.contiguous(),
        turns.positions, starts, sink, mixed, best, total,
        rows, n_sequences, heads, shape.heads, per_head, turns.block_tables.shape[1], max(mask.size, 1), scale, cap,
        SEQUENCES=0 if one else max(SEQUENCES, triton.next_power_of_2(n_sequences)),
        HEADS=how.heads, M=how.rows, N=how.keys, SPLIT=how.split,
        SCALED=scaled, CAPPED=cap > 0, EXACT=kv.kind in ("f16", "bf16"),
        num_warps=how.num_warps, num_stages=how.num_stages, **d, **same, **FUSED,
    )  # fmt: skip
    if how.split:
        _merge[(rows, heads)](
            mixed, best, total, turns.positions, sink, out, rows, heads, max(mask.size, 1),
            DV=shape.dv, WIDTH=d["WIDTH"], SPLIT=how.split, AT_ONCE=at_once(d["WIDTH"]), **same, **FUSED,
        )  # fmt: skip
    return out
