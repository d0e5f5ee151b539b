"""What some architectures do to rows beside maps and norms: soft caps, clamps, and weights before the experts."""

import torch
from torch import Tensor

from gmoe.kernels.ops import DeviceKernels, capped, clamped, lay, reach, scaled


class Cap:
    """x [T, n] -> most * tanh(x / most), in its memory; 0 caps nothing."""

    def __init__(self, most: float, device: torch.device, on: DeviceKernels | None = None):
        self.most = torch.tensor([most], device=device) if most else None
        self.on = on

    def __call__(self, x: Tensor) -> Tensor:
        return x if self.most is None else self.bound(x, self.most)

    def bound(self, x: Tensor, most: Tensor) -> Tensor:
        """Softly."""
        return capped(x, most, self.on)


class Clamp(Cap):
    """x [T, n] no further than `most` from zero, in its memory; 0 clamps nothing."""

    def bound(self, x: Tensor, most: Tensor) -> Tensor:
        """At once."""
        return clamped(x, most, self.on)


class Weighted:
    """Experts whose weights count before them: rows times their weights, and the weights of 1 that then are left."""

    def __init__(self, device: torch.device, on: DeviceKernels | None = None):
        self.on, self._ones = on, [torch.ones(0, 1, device=device)]  # a recorded step reads an old one

    def __call__(self, x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """x [T, D] and weights [T, 1] -> x * weights, and ones [T, 1]."""
        if len(self._ones[-1]) < len(x):
            self._ones.append(torch.ones(reach(len(x)), 1, device=weights.device))
        return scaled(lay(x[:, None]).flatten(1), weights, self.on), self._ones[-1][: len(x)]
