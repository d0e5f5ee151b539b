"""The activation between up and down, in another kernel or as a launch of its own; and a shared expert's gate."""

from typing import get_args

import torch
import triton
import triton.language as tl
from gmoe.kernels.activations import Curve, kind_of
from gmoe.kernels.triton.matmul import FUSED
from torch import Tensor

AT_ONCE = 512  # elements a program


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def softplus(x):
    """log(1 + e^x), with the digits of log(1 + p) as log(above) * p / rounded."""
    power = tl.exp(-tl.abs(x))
    above = 1.0 + power
    rounded = above - 1.0
    log = tl.where(rounded > 0.0, tl.log(above) * (power / tl.where(rounded > 0.0, rounded, 1.0)), power)
    return tl.maximum(x, 0.0) + log


@triton.jit
def activated(gate, up, ACTIVATION: tl.constexpr, MOST: tl.constexpr):
    """float32 of any shape; "sigmoid" and "softplus" are up times that curve of gate, MOST bounds the last two."""
    if ACTIVATION == "swiglu":
        return gate * _sigmoid(gate) * up
    elif ACTIVATION == "geglu":
        inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
        return gate * _sigmoid(2.0 * inner) * up  # (1 + tanh z) / 2 is the sigmoid of 2 z
    elif ACTIVATION == "reglu":
        return tl.maximum(gate, 0.0) * up
    elif ACTIVATION == "relu2":
        return tl.maximum(up, 0.0) * tl.maximum(up, 0.0)
    elif ACTIVATION == "sigmoid":
        return up * _sigmoid(gate)
    elif ACTIVATION == "softplus":
        return up * softplus(gate)
    elif ACTIVATION == "swiglu_within":
        return tl.minimum(gate * _sigmoid(gate), MOST) * tl.minimum(tl.maximum(up, -MOST), MOST)
    elif ACTIVATION == "swiglu_under":
        gate = tl.minimum(gate, MOST)
        return gate * _sigmoid(gate) * tl.minimum(tl.maximum(up, -MOST), MOST)
    else:
        tl.static_assert(ACTIVATION == "swiglu_oai")
        gate = tl.minimum(gate, 7.0)
        up = tl.minimum(tl.maximum(up, -7.0), 7.0)
        return gate * _sigmoid(1.702 * gate) * (up + 1.0)


@triton.jit
def _activate(
    gate, up, y, n, gate_row, ONE_GATE: tl.constexpr, ACTIVATION: tl.constexpr, MOST: tl.constexpr, N: tl.constexpr
):
    """A part of a row; ONE_GATE: the row has one gate for all of it."""
    t, i = tl.program_id(1).to(tl.int64), tl.program_id(0) * N + tl.arange(0, N)
    u = tl.load(up + t * n + i, mask=i < n, other=0.0)
    g = tl.load(gate + t * gate_row + tl.where(ONE_GATE, 0, i), mask=i < n, other=0.0)
    tl.store(y + t * n + i, activated(g, u, ACTIVATION, MOST), mask=i < n)


def kind_here(name: str) -> tuple[str, float]:
    """What an activation is and its bound, 0.0 where it has none; `ValueError` for one that no device has."""
    kind, most, _ = kind_of(name)
    if kind == "situ":
        raise ValueError(f"activation {name!r} is computed on the CPU alone")
    return kind, most


def activate(name: str, gate: Tensor | None, up: Tensor) -> Tensor:
    """The activation of gate and up [T, n] float32; gate may be [T, 1] for a curve, None for relu2."""
    kind, most = (name, 0.0) if name in get_args(Curve) else kind_here(name)
    if gate is None and kind != "relu2":
        raise ValueError(f"activation {name!r} needs a gate")
    up = up.contiguous()
    gate = up if gate is None else gate.contiguous()
    tokens, n = up.shape
    one_gate = name in get_args(Curve) and gate.shape == (tokens, 1)
    if gate.shape != up.shape and not one_gate:
        raise ValueError(f"gate {list(gate.shape)} and up {list(up.shape)} do not fit")
    y = torch.empty_like(up)
    if up.numel():
        grid = triton.cdiv(n, AT_ONCE), tokens
        which = {"ONE_GATE": one_gate, "ACTIVATION": kind, "MOST": most, "N": AT_ONCE}
        _activate[grid](gate, up, y, n, gate.stride(0), **which, **FUSED)
    return y
