"""The routed experts of a layer, read where they lie in a bank of slots: gate and up, then down, then the sum."""

from typing import Any

import torch
import triton
import triton.language as tl
from gmoe.kernels.bank import ExpertBank, SlotMatrix
from gmoe.kernels.triton.activation import activated, kind_here
from gmoe.kernels.triton.matmul import FUSED, Launch, launch, multiply, processors, tile
from gmoe.kernels.triton.row import Row, row, signs, table
from gmoe.kernels.triton.tuned import SHIPPED, Choices, key
from torch import Tensor


@triton.jit
def _block(number, pairs, slots, ids, M: tl.constexpr, BY_ID: tl.constexpr):
    """The pairs [M] of a block, -1: nobody, and the slot of their expert, -1: nothing is to do."""
    if M == 1:
        at = ids if BY_ID else slots
        slot = tl.load(at + number)
        if BY_ID:
            slot = tl.load(slots + slot, mask=slot >= 0, other=-1)
        pair = number + tl.arange(0, 1)
    else:
        slot = tl.load(slots + number)
        pair = tl.load(pairs + number * M + tl.arange(0, M))
    return pair, slot


@triton.jit
def _gate_up_tile(
    tile, number, x, bank, h, pairs, slots, ids, slot_bytes, FF, k, gate_at, up_at, gate_row_bytes, up_row_bytes,
    gate_bias, up_bias, gate_table, up_table, signs,
    D: tl.constexpr, M: tl.constexpr, N: tl.constexpr, GATE: tl.constexpr, UP: tl.constexpr,
    GATED: tl.constexpr, GATE_BIAS: tl.constexpr, UP_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, MOST: tl.constexpr,
    PRECISION: tl.constexpr, BY_ID: tl.constexpr,
):  # fmt: skip
    pair, slot = _block(number, pairs, slots, ids, M, BY_ID)
    if slot >= 0:
        inside = pair >= 0
        n = tile * N + tl.arange(0, N)
        row_number = tl.where(n < FF, n, 0).to(tl.int64)
        here = bank + slot.to(tl.int64) * slot_bytes
        xs = tl.where(inside, pair // k, 0).to(tl.int64) * D
        expert = tl.maximum(tl.load(ids + tl.where(inside, pair, 0)), 0).to(tl.int64)  # the first pair may be nobody's
        beside = expert[:, None] * FF + row_number[None, :]  # of the biases
        rows = here + up_at + row_number * up_row_bytes
        up = multiply(x, rows, up_table, signs, xs, inside, 0, D, D, M, N, True, UP, PRECISION)
        if UP_BIAS:
            up += tl.load(up_bias + beside)
        gate = up
        if GATED:
            rows = here + gate_at + row_number * gate_row_bytes
            gate = multiply(x, rows, gate_table, signs, xs, inside, 0, D, D, M, N, True, GATE, PRECISION)
            if GATE_BIAS:
                gate += tl.load(gate_bias + beside)
        value = activated(gate, up, ACTIVATION, MOST).to(h.dtype.element_ty)
        place = pair[:, None].to(tl.int64) * FF + n[None, :]
        tl.store(h + place, value, mask=inside[:, None] & (n < FF)[None, :])


@triton.jit(do_not_specialize=["blocks"])
def _gate_up(
    x, bank, h, pairs, slots, ids, slot_bytes, FF, k, gate_at, up_at, gate_row_bytes, up_row_bytes,
    gate_bias, up_bias, gate_table, up_table, signs, blocks,
    D: tl.constexpr, M: tl.constexpr, N: tl.constexpr, GATE: tl.constexpr, UP: tl.constexpr,
    GATED: tl.constexpr, GATE_BIAS: tl.constexpr, UP_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, MOST: tl.constexpr,
    PRECISION: tl.constexpr, BY_ID: tl.constexpr, PERSISTENT: tl.constexpr,
):  # fmt: skip
    if PERSISTENT:
        tiles = tl.cdiv(FF, N)
        for work in range(tl.program_id(0), tiles * blocks, tl.num_programs(0)):
            _gate_up_tile(
                work % tiles, work // tiles, x, bank, h, pairs, slots, ids, slot_bytes, FF, k, gate_at, up_at,
                gate_row_bytes, up_row_bytes, gate_bias, up_bias, gate_table, up_table, signs,
                D, M, N, GATE, UP, GATED, GATE_BIAS, UP_BIAS, ACTIVATION, MOST, PRECISION, BY_ID,
            )  # fmt: skip
    else:
        _gate_up_tile(
            tl.program_id(0), tl.program_id(1), x, bank, h, pairs, slots, ids, slot_bytes, FF, k, gate_at, up_at,
            gate_row_bytes, up_row_bytes, gate_bias, up_bias, gate_table, up_table, signs,
            D, M, N, GATE, UP, GATED, GATE_BIAS, UP_BIAS, ACTIVATION, MOST, PRECISION, BY_ID,
        )  # fmt: skip


@triton.jit
def _down_tile(
    tile, number, h, bank, out, pairs, slots, ids, slot_bytes, D, at, row_bytes, bias, table, signs,
    FF: tl.constexpr, M: tl.constexpr, N: tl.constexpr, DOWN: tl.constexpr, BIAS: tl.constexpr,
    PRECISION: tl.constexpr, BY_ID: tl.constexpr,
):  # fmt: skip
    pair, slot = _block(number, pairs, slots, ids, M, BY_ID)
    if slot >= 0:
        inside = pair >= 0
        n = tile * N + tl.arange(0, N)
        row_number = tl.where(n < D, n, 0).to(tl.int64)
        rows = bank + slot.to(tl.int64) * slot_bytes + at + row_number * row_bytes
        hs = tl.where(inside, pair, 0).to(tl.int64) * FF
        total = multiply(h, rows, table, signs, hs, inside, 0, FF, FF, M, N, True, DOWN, PRECISION)
        if BIAS:
            expert = tl.maximum(tl.load(ids + tl.where(inside, pair, 0)), 0).to(tl.int64)
            total += tl.load(bias + expert[:, None] * D + row_number[None, :])
        place = pair[:, None].to(tl.int64) * D + n[None, :]
        tl.store(out + place, total, mask=inside[:, None] & (n < D)[None, :])


@triton.jit(do_not_specialize=["blocks"])
def _down(
    h, bank, out, pairs, slots, ids, slot_bytes, D, at, row_bytes, bias, table, signs, blocks,
    FF: tl.constexpr, M: tl.constexpr, N: tl.constexpr, DOWN: tl.constexpr, BIAS: tl.constexpr,
    PRECISION: tl.constexpr, BY_ID: tl.constexpr, PERSISTENT: tl.constexpr,
):  # fmt: skip
    if PERSISTENT:
        tiles = tl.cdiv(D, N)
        for work in range(tl.program_id(0), tiles * blocks, tl.num_programs(0)):
            _down_tile(
                work % tiles, work // tiles, h, bank, out, pairs, slots, ids, slot_bytes, D, at, row_bytes,
                bias, table, signs, FF, M, N, DOWN, BIAS, PRECISION, BY_ID,
            )  # fmt: skip
    else:
        _down_tile(
            tl.program_id(0), tl.program_id(1), h, bank, out, pairs, slots, ids, slot_bytes, D, at, row_bytes,
            bias, table, signs, FF, M, N, DOWN, BIAS, PRECISION, BY_ID,
        )  # fmt: skip


@triton.jit
def _combine(out, slots, weights, y, D, K: tl.constexpr, N: tl.constexpr):
    t = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * N + tl.arange(0, N)
    total = tl.zeros((N,), tl.float32)
    for j in tl.static_range(K):
        here = tl.load(slots + t * K + j) >= 0  # of an absent expert `out` holds nothing
        value = tl.load(out + (t * K + j) * D + n, mask=tl.where(here, n, D) < D, other=0.0)
        total += tl.where(here, tl.load(weights + t * K + j) * value, 0.0)
    tl.store(y + t * D + n, total.to(y.dtype.element_ty), mask=n < D)


def blocks_of(slots: Tensor, n_slots: int, m: int, n_used: int = 0) -> tuple[Tensor, Tensor]:
    """Pairs sorted by slot and filled up to blocks of m: pairs [blocks * m], and the slot of each block; -1: nobody.

    `slots` [P] int, -1 for pairs that are not computed; at most `n_used` different ones (0: any of the `n_slots`).
    The number of blocks depends on the sizes alone, so nothing waits for the device.
    """
    count = slots.numel()
    n_blocks = min(count, n_used or n_slots) + count // m
    key = torch.where(slots < 0, n_slots, slots).long()
    counts = torch.zeros(n_slots + 1, dtype=torch.int64, device=slots.device).scatter_add_(0, key, torch.ones_like(key))
    blocks = (counts[:n_slots] + m - 1) // m
    ends = blocks.cumsum(0)
    order = key.argsort(stable=True)
    rank = torch.arange(count, device=slots.device) - (counts.cumsum(0) - counts)[key[order]]  # within its slot
    begin = torch.cat(((ends - blocks) * m, torch.full_like(ends[:1], n_blocks * m)))  # the absent go past the end
    place = (begin[key[order]] + rank).clamp(max=n_blocks * m)
    pairs = torch.full((n_blocks * m + 1,), -1, dtype=torch.int32, device=slots.device)
    pairs = pairs.scatter_(0, place, order.int())[: n_blocks * m]
    number = torch.arange(n_blocks, device=slots.device)
    owner = torch.searchsorted(ends, number, right=True)
    return pairs, torch.where(number < ends[-1], owner, -1).int()


def expert_mlp(
    x: Tensor,
    slots: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor,
    bank: ExpertBank,
    activation: str = "swiglu",
    choices: Choices = SHIPPED,
) -> Tensor:
    """The routed experts' sum: x [T, D] float32, float16 or bfloat16 -> [T, D] of the same dtype.

    slots [T, k]: where each chosen expert lies in the bank, -1: it counts nothing. topk_ids [T, k] choose the biases;
    topk_weights [T, k] float32. Sums are float32, over k in order.
    """
    out = torch.empty(*topk_ids.shape, bank.down.rows, dtype=torch.float32, device=x.device)
    expert_rows(x, slots, topk_ids, bank, activation, out, choices=choices)
    return combine(out, topk_weights, slots).to(x.dtype)


def tokens_a_tile(tokens: int, k: int, bank: ExpertBank) -> int:
    """By how many an expert of a layer meets when k are chosen for each."""
    return tile(max(1, tokens * k // max(1, bank.experts or len(bank.data)))) if tokens > 4 else 1


def launches(m: int, bank: ExpertBank, choices: Choices = SHIPPED) -> tuple[Launch, Launch]:
    """How gate and up, and how down is launched for tiles of m tokens; their sums have one part each."""
    up, down = bank.up, bank.down
    first, second = _form(bank.gate or up), _form(up)
    keys = gate_up_key(m, bank), down_key(m, bank)
    shipped = launch(m, first, second), launch(m, _form(down))
    a, b = (choices.of(name, given) for name, given in zip(keys, shipped, strict=True))
    return a, b


def gate_up_key(m: int, bank: ExpertBank) -> str:
    """Under which a choice for gate and up is kept."""
    formats = f"{(bank.gate or bank.up).format.name}/{bank.up.format.name}"
    return key("gate_up", formats, m, bank.up.rows, bank.up.cols)


def down_key(m: int, bank: ExpertBank) -> str:
    """Under which a choice for down is kept."""
    return key("down", bank.down.format.name, m, bank.down.rows, bank.down.cols)


def expert_rows(
    x: Tensor,
    slots: Tensor,
    ids: Tensor,
    bank: ExpertBank,
    activation: str,
    out: Tensor,
    exact: bool = True,
    how: tuple[Launch, Launch] | None = None,
    choices: Choices = SHIPPED,
) -> None:
    """Fill out[t, j] float32 with expert ids[t, j] of x[t], which lies in slots[t, j], or by id in slots [E].

    A slot or an id of -1 leaves its row alone.
    x [T, D] float32, float16 or bfloat16; out [T, k, D]; ids [T, k] choose the biases too. A row's bits depend on its
    expert and on the sizes of x and k alone. Not `exact`: tiles of float32 are multiplied as TF32.
    """
    up, gate, down = bank.up, bank.gate, bank.down
    tokens, k = ids.shape
    by_id = slots.dim() == 1
    if x.shape != (tokens, up.cols) or not (by_id or slots.shape == ids.shape) or out.shape != (tokens, k, down.rows):
        shapes = f"x {tuple(x.shape)}, slots {tuple(slots.shape)}, topk_ids {tuple(ids.shape)}"
        raise ValueError(f"{shapes}, out {tuple(out.shape)} do not fit experts of width {up.cols}")
    kind, most = kind_here(activation)
    if (gate is None) != (kind == "relu2"):
        raise ValueError(f"activation {activation!r} does not go with {'no gate' if gate is None else 'a gate'}")
    if not tokens:
        return
    m = tokens_a_tile(tokens, k, bank)
    slots, ids = slots.int().contiguous(), ids.int().contiguous()
    pairs, blocks = ids, tokens * k  # a pair a block
    if m > 1:
        if by_id:
            slots = torch.where(ids < 0, -1, slots[ids.clamp(min=0)])
        pairs, slots = blocks_of(slots.flatten(), len(bank.data), m, bank.experts)
        blocks = len(slots)
    h = torch.empty(tokens * k, up.rows, dtype=x.dtype, device=x.device)
    first, slot_bytes, sign_table = gate or up, bank.data.stride(0), signs(x.device)
    how_up, how_down = how or launches(m, bank, choices)
    both: dict[str, Any] = {"M": m, "PRECISION": "ieee" if exact else "tf32", "BY_ID": by_id and m == 1}
    _gate_up[_grid(how_up, up.rows, blocks, x.device)](
        x.contiguous(), bank.data, h, pairs, slots, ids, slot_bytes, up.rows, k,
        first.offset, up.offset, _row_bytes(first), _row_bytes(up), *_biases(first, up, like=out),
        table(first.format.name, x.device), table(up.format.name, x.device), sign_table, blocks,
        D=up.cols, N=how_up.n, GATE=_form(first), UP=_form(up), GATED=gate is not None,
        GATE_BIAS=first.bias is not None, UP_BIAS=up.bias is not None, ACTIVATION=kind, MOST=most,
        PERSISTENT=how_up.persistent > 0, **both, **how_up.options,
    )  # fmt: skip
    _down[_grid(how_down, down.rows, blocks, x.device)](
        h, bank.data, out, pairs, slots, ids, slot_bytes, down.rows, down.offset, _row_bytes(down),
        *_biases(down, like=out), table(down.format.name, x.device), sign_table, blocks,
        FF=down.cols, N=how_down.n, DOWN=_form(down), BIAS=down.bias is not None,
        PERSISTENT=how_down.persistent > 0, **both, **how_down.options,
    )  # fmt: skip


def combine(out: Tensor, weights: Tensor, places: Tensor) -> Tensor:
    """Sum out [T, k, D] float32 over k in order, weighted [T, k]; a place [T, k] below 0 counts nothing."""
    tokens, k, width = out.shape
    y = torch.empty(tokens, width, dtype=torch.float32, device=out.device)
    if tokens:
        n = 256
        given = out.contiguous(), places.int().contiguous(), weights.float().contiguous()
        _combine[(triton.cdiv(width, n), tokens)](*given, y, width, K=k, N=n, **FUSED)
    return y


def _form(matrix: SlotMatrix) -> Row:
    return row(matrix.format.name)


def _row_bytes(matrix: SlotMatrix) -> int:
    return matrix.format.row_bytes(matrix.cols)


def _biases(*matrices: SlotMatrix, like: Tensor) -> list[Tensor]:
    """Their biases; where there is none any pointer does, since the kernel does not read it."""
    return [like if m.bias is None else m.bias.contiguous() for m in matrices]


def _grid(how: Launch, rows: int, blocks: int, device: torch.device) -> tuple[int, ...]:
    """A program a tile, or so many a processor that each do one tile after another."""
    tiles = triton.cdiv(rows, how.n)
    return (min(how.persistent * processors(device), tiles * blocks),) if how.persistent else (tiles, blocks)
