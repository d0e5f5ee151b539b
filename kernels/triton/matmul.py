"""Dequantize, and y = x @ W.T with W quantized: dot products for one row of x, tiles for more."""

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from gmoe.kernels.formats import QuantTensor
from gmoe.kernels.triton.row import SPAN as _SPAN
from gmoe.kernels.triton.row import Row, row, signs, table
from gmoe.kernels.triton.unpack import values
from torch import Tensor

SPAN = tl.constexpr(_SPAN)
TWO_STAGES = 232448  # bytes: what a tile of 64 takes of any plain format, and Hopper has
FUSED = {"enable_fp_fusion": True}  # a product and a sum may round once


@triton.jit
def multiply(
    x, rows, table, signs, xs, inside,
    K: tl.constexpr, M: tl.constexpr, N: tl.constexpr, ROW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """x's rows (those at the element offsets `xs` [M], where `inside`) times N weight rows -> float32 [M, N]."""
    total = tl.zeros((M, N), tl.float32)
    for k in range(0, K, SPAN):
        w = values(rows, k, table, signs, K, N, ROW)  # [N, 256]
        at = k + tl.arange(0, SPAN)
        a = tl.load(x + xs[:, None] + at[None, :], mask=inside[:, None] & (at < K)[None, :], other=0.0)  # [M, 256]
        if M == 1:
            total += tl.sum(w * a.to(tl.float32), 1)[None, :]
        elif x.dtype.element_ty == tl.float32:
            total = tl.dot(a, tl.trans(w), total, input_precision=PRECISION)
        else:
            total = tl.dot(a, tl.trans(w.to(x.dtype.element_ty)), total)
    return total


@triton.jit
def _matmul(
    x, w, y, T, OUT, row_bytes, table, signs,
    K: tl.constexpr, M: tl.constexpr, N: tl.constexpr, ROW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(1) * M + tl.arange(0, M)
    n = tl.program_id(0) * N + tl.arange(0, N)
    rows = w + tl.where(n < OUT, n, 0).to(tl.int64) * row_bytes
    total = multiply(x, rows, table, signs, t.to(tl.int64) * K, t < T, K, M, N, ROW, PRECISION)
    place = t[:, None].to(tl.int64) * OUT + n[None, :]
    tl.store(y + place, total.to(y.dtype.element_ty), mask=(t < T)[:, None] & (n < OUT)[None, :])


@triton.jit
def _dequantize(w, y, OUT, row_bytes, table, signs, K: tl.constexpr, N: tl.constexpr, ROW: tl.constexpr):
    n = tl.program_id(0) * N + tl.arange(0, N)
    k = tl.program_id(1) * SPAN
    rows = w + tl.where(n < OUT, n, 0).to(tl.int64) * row_bytes
    at = k + tl.arange(0, SPAN)
    inside = (n < OUT)[:, None] & (at < K)[None, :]
    value = values(rows, k, table, signs, K, N, ROW).to(y.dtype.element_ty)
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


def launch(m: int, shared: int, *rows: Row) -> dict[str, Any]:
    """How a kernel of tiles of m rows is launched where programs may take `shared` bytes.

    With one stage a tile of 64 takes 96 KiB, which every card has that the kernels run on. Looked-up grids would be
    staged as well, which no card has room for.
    """
    plain = all(row.low_bits or row.block == 1 for row in rows)
    return {"num_stages": 2 if shared >= TWO_STAGES and plain else 1, "num_warps": 8 if m == 64 else 4} | FUSED


def tile(tokens: int) -> tuple[int, int]:
    """Rows of x and rows of W that a program takes; tl.dot wants at least 16 of each."""
    if tokens == 1:
        return 1, 8
    return 16 if tokens <= 16 else 32 if tokens <= 64 else 64, 32


def matmul(x: Tensor, w: QuantTensor, *, exact: bool = True) -> Tensor:
    """`x @ w.T`: x [T, in] float32, float16 or bfloat16 -> [T, out] of the same dtype, sums in float32.

    `w.data` is a uint8 tensor on x's device; ValueError where shapes do not fit. Not `exact`: tiles of float32 are
    multiplied as TF32.
    """
    out, width = w.shape
    if x.dim() != 2 or x.shape[1] != width:
        raise ValueError(f"x of shape {tuple(x.shape)} does not fit weights of shape {tuple(w.shape)}")
    form = row(w.format.name)
    x, y = x.contiguous(), torch.empty(len(x), out, dtype=x.dtype, device=x.device)
    if len(x):
        m, n = tile(len(x))
        grid = (triton.cdiv(out, n), triton.cdiv(len(x), m))
        lookups = table(form.name, x.device), signs(x.device)
        data, precision = w.data.reshape(out, -1), "ieee" if exact else "tf32"
        given = x, data, y, len(x), out, data.stride(0), *lookups
        how = launch(m, shared_memory(x.device), form)
        _matmul[grid](*given, K=width, M=m, N=n, ROW=form, PRECISION=precision, **how)
    return y
