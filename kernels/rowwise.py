"""The elementwise parts of a step on whatever serves the device: activations, gates, scales, bounds and layer norms."""

import torch
import torch.nn.functional as F
from gmoe.kernels import cpu_rows, cpu_step
from gmoe.kernels.activations import Curve
from gmoe.kernels.device_kernels import DeviceKernels
from torch import Tensor

On = DeviceKernels | None  # what computes where the tensors are; None: on the CPU


def activate(name: str, gate: Tensor | None, up: Tensor, on: On = None) -> Tensor:
    """The activation between up and down [T, n]: those of `KINDS`, of which relu2 has no gate.

    On the CPU in the memory of up.
    """
    if on is None:
        up = up.contiguous()
        return cpu_rows.activate(name, gate, up, torch.get_num_threads(), out=up)
    return on.activate(name, gate, up)


def gated(gate: Tensor, y: Tensor, on: On = None, curve: Curve = "sigmoid") -> Tensor:
    """y [T, n] * the curve of gate, [T, n] or [T, 1]; on the CPU in the memory of y."""
    if on is None:
        y = y.contiguous()
        return cpu_rows.gated(gate, y, torch.get_num_threads(), out=y, curve=curve)
    return on.activate(curve, gate, y)


def capped(x: Tensor, most: Tensor, on: On = None) -> Tensor:
    """most * tanh(x / most) of x [T, n] and one number [1], in the memory of x."""
    return cpu_rows.capped(x, most, torch.get_num_threads(), out=x) if on is None else x.div_(most).tanh_().mul_(most)


def clamped(x: Tensor, most: Tensor, on: On = None) -> Tensor:
    """x [T, n], no further from zero than one number [1], in the memory of x."""
    return cpu_rows.clamped(x, most, torch.get_num_threads(), out=x) if on is None else x.clamp_(-most, most)


def scaled(x: Tensor, by: Tensor, on: On = None) -> Tensor:
    """x [T, n] times one number [1], or one a row [T, 1], in the memory of x."""
    return cpu_rows.scaled(x, by, torch.get_num_threads(), out=x) if on is None else x.mul_(by)


def stream_weights(mixes: Tensor, n: int, rounds: int, eps: float) -> tuple[Tensor, Tensor]:
    """Of mixes [T, (2 + n) * n]: what each of n streams is read with [T, 1, n], and written with [T, n, 1 + n].

    A sigmoid above eps reads. Twice a sigmoid writes what was given, and beside it all streams by a softmax that
    `rounds` of Sinkhorn's have made a matrix whose rows and columns sum to 1. On the CPU alone, as `blended`.
    """
    return cpu_rows.stream_weights(mixes, n, rounds, eps, torch.get_num_threads())


def blended(x: Tensor, y: Tensor | None, weights: Tensor) -> Tensor:
    """Of streams x [T, n, D], behind y [T, D] if given, the sums by weights [T, m, n] or [T, m, 1 + n]: [T, m, D]."""
    return cpu_rows.blended(x, y, weights, torch.get_num_threads())


def warmth(positions: Tensor, behind: int, step: int, growth: float, on: On = None) -> Tensor:
    """log(floor((position + behind) / step) + 1) * growth + 1 at positions [T]: [T, 1]."""
    if on is None:
        return cpu_rows.warmth(positions, behind, step, growth)
    return (torch.log(torch.floor((positions + behind).float() / step) + 1.0) * growth + 1.0)[:, None]


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, on: On = None) -> Tensor:
    """(x - mean) / deviation * weight + bias over the last dimension."""
    if on is not None:
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    x = cpu_rows.centred(x, torch.get_num_threads())
    return cpu_step.rms_norm(x, weight, bias, eps, torch.get_num_threads(), out=x)
