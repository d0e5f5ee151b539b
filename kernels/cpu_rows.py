"""The compiled elementwise parts of a step, behind checks: activations, gates, scales, bounds and means of rows."""

import torch
from gmoe.kernels.activations import KINDS, Curve, kind_of
from gmoe.kernels.cpu import _cpu
from gmoe.kernels.cpu_step import at, check, step_of
from torch import Tensor

_ACTIVATIONS = dict(zip(KINDS, (0, 1, 2, 3, 4, 12, 13, 14), strict=True))
MOST_STREAMS = 16  # of a residual
_CURVES = {"sigmoid": (5, 6), "softplus": (10, 11)}  # of a gate for a row, for an element


def activate(
    name: str, gate: Tensor | None, up: Tensor, threads: int, level: str | None = None, out: Tensor | None = None
) -> Tensor:
    """The activation between up and down, [T, n] each; in `out`, which may be up, if given."""
    kind, *most = kind_of(name)
    if gate is None and kind != "relu2":
        raise ValueError(f"activation {name!r} needs a gate")
    return _gate(_ACTIVATIONS[kind], gate, up.shape, up, threads, level, out, *most)


def gated(
    gate: Tensor,
    y: Tensor,
    threads: int,
    level: str | None = None,
    out: Tensor | None = None,
    curve: Curve = "sigmoid",
) -> Tensor:
    """y [T, n] * the curve of gate, [T, n] or [T, 1]; in `out`, which may be y, if given."""
    one, all = _CURVES[curve]
    if gate.shape == y.shape:
        return _gate(all, gate, y.shape, y, threads, level, out)
    return _gate(one, gate, torch.Size((len(y), 1)), y, threads, level, out)


def capped(x: Tensor, most: Tensor, threads: int, level: str | None = None, out: Tensor | None = None) -> Tensor:
    """most * tanh(x / most) of x [T, n] and one number; in `out`, which may be x, if given."""
    return _gate(7, most, torch.Size((1,)), x, threads, level, out)


def clamped(x: Tensor, most: Tensor, threads: int, level: str | None = None, out: Tensor | None = None) -> Tensor:
    """x [T, n] where it is between -most and most, one number, else the nearer of these; likewise."""
    return _gate(8, most, torch.Size((1,)), x, threads, level, out)


def scaled(x: Tensor, by: Tensor, threads: int, level: str | None = None, out: Tensor | None = None) -> Tensor:
    """x [T, n] times one number, or one a row, [T, 1]; likewise."""
    return _gate(9, by, torch.Size((1,)) if by.dim() == 1 else torch.Size((len(x), 1)), x, threads, level, out)


def centred(x: Tensor, threads: int, level: str | None = None) -> Tensor:
    """x [..., n] less the mean of each row."""
    x = x.contiguous()
    check("x", x, x.shape)
    out, n = torch.empty_like(x), x.shape[-1]
    if n:
        step_of(level).centre(x.data_ptr(), x.numel() // n, n, out.data_ptr(), threads)
    return out


def stream_weights(
    mixes: Tensor, n: int, rounds: int, eps: float, threads: int, level: str | None = None
) -> tuple[Tensor, Tensor]:
    """Of mixes [T, (2 + n) * n]: what each of n streams is read with [T, 1, n], and written with [T, n, 1 + n]."""
    if not 1 <= n <= MOST_STREAMS or rounds < 0:
        raise ValueError(f"{n} streams and {rounds} rounds; 1 to {MOST_STREAMS} and none below 0 are possible")
    mixes = mixes.contiguous()
    check("mixes", mixes, (len(mixes), (2 + n) * n))
    read, write = torch.empty(len(mixes), 1, n), torch.empty(len(mixes), n, 1 + n)
    step_of(level).weave(mixes.data_ptr(), len(mixes), n, rounds, eps, read.data_ptr(), write.data_ptr(), threads)
    return read, write


def blended(x: Tensor, y: Tensor | None, weights: Tensor, threads: int, level: str | None = None) -> Tensor:
    """Of streams x [T, n, D], behind y [T, D] if given, the sums by weights [T, m, n] or [T, m, 1 + n]: [T, m, D]."""
    x, weights = x.contiguous(), weights.contiguous()
    tokens, n, d = x.shape
    check("x", x, x.shape)
    check("weights", weights, (tokens, weights.shape[1], n + (y is not None)))
    if y is not None:
        y = y.contiguous()
        check("y", y, (tokens, d))
    out = torch.empty(tokens, weights.shape[1], d)
    where = x.data_ptr(), tokens, n, at(y), weights.data_ptr(), weights.shape[1], d, out.data_ptr()
    step_of(level).blend(*where, threads)
    return out


def warmth(positions: Tensor, behind: int, step: int, growth: float) -> Tensor:
    """log(floor((position + behind) / step) + 1) * growth + 1 at positions [T] int64, none below zero: [T, 1]."""
    if positions.dtype is not torch.int64 or not positions.is_contiguous() or step < 1:
        raise ValueError(f"positions must be contiguous int64, a step at least 1, not {step}")
    out = torch.empty(len(positions), 1)
    _cpu.warm(positions.data_ptr(), len(positions), behind, step, growth, out.data_ptr())
    return out


def _gate(
    kind: int,
    gate: Tensor | None,
    shape: torch.Size,
    up: Tensor,
    threads: int,
    level: str | None,
    out: Tensor | None,
    most: float = 0.0,
    most_up: float = 0.0,
) -> Tensor:
    up = up.contiguous()
    check("up", up, up.shape)
    if gate is not None:
        gate = gate.contiguous()
        check("gate", gate, shape)
    y = torch.empty_like(up) if out is None else out
    check("out", y, up.shape)
    apart = 0 if len(shape) == 1 else shape[1]
    step_of(level).gate(kind, most, most_up, at(gate), apart, up.data_ptr(), *up.shape, y.data_ptr(), threads)
    return y
