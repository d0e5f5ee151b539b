"""Dequantize, and y = x @ W.T with W quantized: dot products for one row of x, tiles for more."""

from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from gmoe.kernels.formats import QuantTensor
from gmoe.kernels.triton.planes import add_product, dots, tiles
from gmoe.kernels.triton.row import SPAN as _SPAN
from gmoe.kernels.triton.row import Row, row, signs, table
from gmoe.kernels.triton.tuned import SHIPPED, Choices, key
from gmoe.kernels.triton.unpack import values
from torch import Tensor

SPAN = tl.constexpr(_SPAN)
FUSED = {"enable_fp_fusion": True}  # a product and a sum may round once


class Launch(NamedTuple):
    """What a program takes: rows of W, and of their sum over K one of so many parts; and how it runs.

    `persistent`: 0, a program a tile; else so many programs a processor of the card, each of them tile after tile.
    """

    n: int
    parts: int
    num_warps: int
    num_stages: int
    persistent: int = 0

    @property
    def options(self) -> dict[str, Any]:
        """For Triton."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages} | FUSED


@triton.jit
def multiply(
    x, rows, table, signs, xs, inside, first, past,
    K: tl.constexpr, M: tl.constexpr, N: tl.constexpr, WHOLE: tl.constexpr, ROW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """x's rows (those at the element offsets `xs` [M], where `inside`) times N weight rows -> float32 [M, N].

    Over the elements first .. past of K, where `first` is a multiple of 256; `WHOLE`: these are all.
    """
    if M == 1:
        if ROW.low_bits != 0:
            one = dots(x + xs[:, None, None], rows, table, first, past, K, N, WHOLE, ROW)
        else:
            one = _dots(x + xs[:, None], rows, table, signs, first, past, K, N, ROW)
        return one[None, :]
    else:
        if ROW.low_bits != 0:
            return tiles(x, rows, table, xs, inside, first, past, K, M, N, ROW, PRECISION)
        else:
            return _tiles(x, rows, table, signs, xs, inside, first, past, K, M, N, ROW, PRECISION)


@triton.jit
def _dots(x, rows, table, signs, first, past, K: tl.constexpr, N: tl.constexpr, ROW: tl.constexpr):
    """As `dots`, of rows without planes; `x` [1, 1]."""
    TURN: tl.constexpr = 256
    total = tl.zeros((N, TURN), tl.float32)
    for k in tl.range(first, past, TURN, loop_unroll_factor=2):
        w = values(rows, k, table, signs, K, N, TURN, ROW)
        at = tl.broadcast_to(k + tl.arange(0, TURN)[None, :], (N, TURN))
        total += w * tl.load(x + at, mask=at < past, other=0.0).to(tl.float32)
    return tl.sum(total, 1)


@triton.jit
def _tiles(
    x, rows, table, signs, xs, inside, first, past,
    K: tl.constexpr, M: tl.constexpr, N: tl.constexpr, ROW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """As `tiles`, of rows without planes."""
    TURN: tl.constexpr = 64 if ROW.block == 1 else 256
    total = tl.zeros((M, N), tl.float32)
    for k in range(first, past, TURN):
        w = values(rows, k, table, signs, K, N, TURN, ROW)
        at = k + tl.arange(0, TURN)
        a = tl.load(x + xs[:, None] + at[None, :], mask=inside[:, None] & (at < past)[None, :], other=0.0)
        total = add_product(a, w, total, PRECISION)
    return total


@triton.jit
def _tile(
    tile, block, part, x, w, y, T, OUT, row_bytes, table, signs,
    K: tl.constexpr, M: tl.constexpr, N: tl.constexpr, PARTS: tl.constexpr, ROW: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    t = block * M + tl.arange(0, M)
    n = tile * N + tl.arange(0, N)
    rows = w + tl.where(n < OUT, n, 0).to(tl.int64) * row_bytes
    xs, place = t.to(tl.int64) * K, t[:, None].to(tl.int64) * OUT + n[None, :]
    if PARTS == 1:
        total = multiply(x, rows, table, signs, xs, t < T, 0, K, K, M, N, True, ROW, PRECISION)
    else:  # a multiple of 256 for each, the last perhaps less or nothing
        SHARE: tl.constexpr = (K + PARTS * SPAN - 1) // (PARTS * SPAN) * SPAN
        first = part * SHARE
        past = tl.minimum(first + SHARE, K)
        total = multiply(x, rows, table, signs, xs, t < T, first, past, K, M, N, False, ROW, PRECISION)
        place += part.to(tl.int64) * T * OUT
    tl.store(y + place, total.to(y.dtype.element_ty), mask=(t < T)[:, None] & (n < OUT)[None, :])


@triton.jit(do_not_specialize=["T"])
def _matmul(
    x, w, y, T, OUT, row_bytes, table, signs,
    K: tl.constexpr, M: tl.constexpr, N: tl.constexpr, PARTS: tl.constexpr, ROW: tl.constexpr,
    PRECISION: tl.constexpr, PERSISTENT: tl.constexpr,
):  # fmt: skip
    if PERSISTENT:
        tiles, blocks = tl.cdiv(OUT, N), tl.cdiv(T, M)
        for work in range(tl.program_id(0), tiles * blocks * PARTS, tl.num_programs(0)):
            number = work // tiles
            _tile(
                work % tiles, number % blocks, number // blocks, x, w, y, T, OUT, row_bytes, table, signs,
                K, M, N, PARTS, ROW, PRECISION,
            )  # fmt: skip
    else:
        _tile(
            tl.program_id(0), tl.program_id(1), tl.program_id(2), x, w, y, T, OUT, row_bytes, table, signs,
            K, M, N, PARTS, ROW, PRECISION,
        )  # fmt: skip


@triton.jit(do_not_specialize=["OUT"])
def _dequantize(w, y, OUT, row_bytes, table, signs, K: tl.constexpr, N: tl.constexpr, ROW: tl.constexpr):
    TURN: tl.constexpr = 256
    n = tl.program_id(0) * N + tl.arange(0, N)
    k = tl.program_id(1) * TURN
    rows = w + tl.where(n < OUT, n, 0).to(tl.int64) * row_bytes
    at = k + tl.arange(0, TURN)
    inside = (n < OUT)[:, None] & (at < K)[None, :]
    value = values(rows, k, table, signs, K, N, TURN, ROW).to(y.dtype.element_ty)
    tl.store(y + n[:, None].to(tl.int64) * K + at[None, :], value, mask=inside)


def dequantize(w: QuantTensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The values of `w` [rows, cols] on its device, bit for bit the reference's; computed in float32."""
    rows, cols = w.shape
    form, data = row(w.format.name), w.data.reshape(rows, -1)
    y = torch.empty(rows, cols, dtype=dtype, device=data.device)
    lookups = table(form.name, y.device), signs(y.device)
    grid = (triton.cdiv(rows, 16), triton.cdiv(cols, _SPAN))
    if rows:
        exactly = {"enable_fp_fusion": False}  # as the reference rounds
        _dequantize[grid](data, y, rows, data.stride(0), *lookups, K=cols, N=16, ROW=form, **exactly)
    return y


@cache
def shared_memory(device: torch.device) -> int:
    """Bytes of fast memory that a program may take on a card; 0 where it is none."""
    if device.type != "cuda":
        return 0
    return int(torch.cuda.get_device_properties(device).shared_memory_per_block_optin)


@cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a card; a few where it is none."""
    return int(torch.cuda.get_device_properties(device).multi_processor_count) if device.type == "cuda" else 3


def launch(m: int, *rows: Row) -> Launch:
    """The shipped choice for tiles of m rows of x; tl.dot wants 16 rows of W.

    One row of x meets four of W in a program, which is little work, so that a card is full of programs. Looked-up grids
    take 256 elements of a row at a time, for which not every card has room twice.
    """
    if m == 1:
        return Launch(4, 1, 4, 1)
    looked_up = any(not row.low_bits and row.block > 1 for row in rows)
    return Launch(64 if m == 64 and not looked_up else 32, 1, 4, 1 if looked_up else 2)


def tile(tokens: int) -> int:
    """Rows of x that a program takes; tl.dot wants at least 16."""
    if tokens == 1:
        return 1
    return 16 if tokens <= 16 else 32 if tokens <= 64 else 64


def chosen(m: int, w: QuantTensor, choices: Choices) -> Launch:
    """How tiles of m rows of x meet `w`."""
    form = row(w.format.name)
    return choices.of(key("matmul", form.name, m, *w.shape), launch(m, form))


def matmul(
    x: Tensor, w: QuantTensor, *, exact: bool = True, how: Launch | None = None, choices: Choices = SHIPPED
) -> Tensor:
    """`x @ w.T`: x [T, in] float32, float16 or bfloat16 -> [T, out] of the same dtype, sums in float32.

    `w.data` is a uint8 tensor on x's device; ValueError where shapes do not fit. Not `exact`: tiles of float32 are
    multiplied as TF32.
    """
    out, width = w.shape
    if x.dim() != 2 or x.shape[1] != width:
        raise ValueError(f"x of shape {tuple(x.shape)} does not fit weights of shape {tuple(w.shape)}")
    form, tokens = row(w.format.name), len(x)
    x, y = x.contiguous(), torch.empty(tokens, out, dtype=x.dtype, device=x.device)
    if tokens:
        m = tile(tokens)
        how = how or chosen(m, w, choices)
        grid = _grid(how, triton.cdiv(out, how.n), triton.cdiv(tokens, m), x.device)
        parts = y if how.parts == 1 else torch.empty(how.parts, tokens, out, dtype=torch.float32, device=x.device)
        lookups = table(form.name, x.device), signs(x.device)
        data, precision = w.data.reshape(out, -1), "ieee" if exact else "tf32"
        given = x, data, parts, tokens, out, data.stride(0), *lookups
        sizes = {"K": width, "M": m, "N": how.n, "PARTS": how.parts, "PERSISTENT": how.persistent > 0}
        _matmul[grid](*given, **sizes, ROW=form, PRECISION=precision, **how.options)
        if how.parts > 1:
            y = parts.sum(0).to(x.dtype)
    return y


def _grid(how: Launch, tiles: int, blocks: int, device: torch.device) -> tuple[int, ...]:
    if not how.persistent:
        return tiles, blocks, how.parts
    return (min(how.persistent * processors(device), tiles * blocks * how.parts),)
