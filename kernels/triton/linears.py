"""Maps of the same few rows of x, up to three a launch, whatever their formats, with their biases."""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from gmoe.kernels.formats import QuantTensor
from gmoe.kernels.triton.matmul import chosen, launch, matmul, multiply, tile
from gmoe.kernels.triton.row import row, signs, table
from gmoe.kernels.triton.tuned import SHIPPED, Choices
from torch import Tensor

AT_ONCE = 3
FEW = 16  # rows of x; for more, launches do not matter
Maps = Sequence[tuple[QuantTensor, Tensor | None]]


@triton.jit
def _map(
    number, x, y, w, bias, table, signs, T, OUT, row_bytes,
    K: tl.constexpr, M: tl.constexpr, N: tl.constexpr, ROW: tl.constexpr, BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    t, n = tl.arange(0, M), number * N + tl.arange(0, N)
    rows = w + tl.where(n < OUT, n, 0).to(tl.int64) * row_bytes
    total = multiply(x, rows, table, signs, t.to(tl.int64) * K, t < T, 0, K, K, M, N, True, ROW, PRECISION)
    if BIAS:
        total += tl.load(bias + n, mask=n < OUT, other=0.0)[None, :]
    tl.store(y + t[:, None] * OUT + n[None, :], total, mask=(t < T)[:, None] & (n < OUT)[None, :])


@triton.jit(do_not_specialize=["T"])
def _linears(
    x, y, signs, T, w0, w1, w2, bias0, bias1, bias2, table0, table1, table2, OUT0, OUT1, OUT2, bytes0, bytes1, bytes2,
    K: tl.constexpr, M: tl.constexpr, N: tl.constexpr, COUNT: tl.constexpr, ROW0: tl.constexpr, ROW1: tl.constexpr,
    ROW2: tl.constexpr, BIAS0: tl.constexpr, BIAS1: tl.constexpr, BIAS2: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(0)
    first = tl.cdiv(OUT0, N)
    if number < first:
        _map(number, x, y, w0, bias0, table0, signs, T, OUT0, bytes0, K, M, N, ROW0, BIAS0, PRECISION)
    elif COUNT > 1:
        number -= first
        y += T * OUT0
        second = tl.cdiv(OUT1, N)
        if number < second:
            _map(number, x, y, w1, bias1, table1, signs, T, OUT1, bytes1, K, M, N, ROW1, BIAS1, PRECISION)
        elif COUNT > 2:
            number -= second
            y += T * OUT1
            _map(number, x, y, w2, bias2, table2, signs, T, OUT2, bytes2, K, M, N, ROW2, BIAS2, PRECISION)


def linears(x: Tensor, weights: Maps, exact: bool, choices: Choices = SHIPPED) -> list[Tensor]:
    """x [T, in] float32 -> for each weight [out, in] with its bias [out] or None: [T, out] float32."""
    if len(x) > FEW:
        return _one_by_one(x, weights, exact, choices)
    results: list[Tensor] = []
    for at in range(0, len(weights), AT_ONCE):
        results += _together(x, weights[at : at + AT_ONCE], exact, choices)
    return results


def _one_by_one(x: Tensor, weights: Maps, exact: bool, choices: Choices) -> list[Tensor]:
    products = [matmul(x, w, exact=exact, choices=choices) for w, _ in weights]
    return [y if bias is None else y.add_(bias) for y, (_, bias) in zip(products, weights, strict=True)]


def _together(x: Tensor, weights: Maps, exact: bool, choices: Choices) -> list[Tensor]:
    tokens, width = x.shape
    m, count = tile(tokens), len(weights)
    hows = {chosen(m, w, choices) for w, _ in weights}
    plain = count == 1 and weights[0][1] is None
    if plain or not tokens or any(how.parts > 1 or w.shape[1] != width for how in hows for w, _ in weights):
        return _one_by_one(x, weights, exact, choices)
    forms = [row(w.format.name) for w, _ in weights]
    how = hows.pop() if len(hows) == 1 else launch(m, *forms)
    outs = [w.shape[0] for w, _ in weights]
    y = torch.empty(tokens * sum(outs), dtype=torch.float32, device=x.device)
    data = [w.data.reshape(w.shape[0], -1) for w, _ in weights]
    padded = [*range(count), *[0] * (AT_ONCE - count)]
    sizes: dict[str, Any] = {f"ROW{n}": forms[of] for n, of in enumerate(padded)}
    sizes |= {f"BIAS{n}": weights[of][1] is not None for n, of in enumerate(padded)}
    biases = [y if bias is None else bias.contiguous() for _, bias in weights]
    tables = [table(form.name, x.device) for form in forms]
    lists = data, biases, tables, outs, [d.stride(0) for d in data]
    _linears[(sum(triton.cdiv(out, how.n) for out in outs),)](
        x.contiguous(), y, signs(x.device), tokens, *(of[n] for of in lists for n in padded),
        K=width, M=m, N=how.n, COUNT=count, PRECISION="ieee" if exact else "tf32", **sizes, **how.options,
    )  # fmt: skip
    parts = torch.split_with_sizes(y, [tokens * out for out in outs])
    return [part.view(tokens, out) for part, out in zip(parts, outs, strict=True)]
