"""Norms: RMSNorm and LayerNorm, with a bias where a file has one; and the residual sum before them."""

from torch import Tensor

from gmoe.kernels.ops import DeviceKernels, HeadRule, head_norm, layer_norm, residual, residual_norm, rms_norm

__all__ = ["HeadNorm", "RMSNorm", "residual"]


class RMSNorm:
    """x / rms(x) * weight (+ bias) over the last dimension; without a weight, only x / rms(x)."""

    def __init__(self, weight: Tensor | None, eps: float, bias: Tensor | None = None, on: DeviceKernels | None = None):
        self.weight, self.eps, self.bias, self.on = weight, eps, bias, on

    def __call__(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.bias, self.eps, self.on)

    def after(self, x: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """x + scale * y of [T, n], in the memory of y, and the norm of that, on the CPU in the memory of x."""
        return residual_norm(x, y, scale, self.weight, self.bias, self.eps, self.on)


class NoNorm(RMSNorm):
    """In place of a norm where what follows has its own: the residual sum alone."""

    def __init__(self, on: DeviceKernels | None = None):
        super().__init__(None, 0.0, on=on)

    def after(self, x: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """x + scale * y of [T, n], in the memory of y, twice the same tensor."""
        y = residual(x, y, scale)
        return y, y


class ScaledNorm(RMSNorm):
    """The norm behind a block of which what it began with counts `factor` times."""

    def __init__(self, norm: RMSNorm, factor: float):
        super().__init__(norm.weight, norm.eps, norm.bias, norm.on)
        self.factor = factor

    def after(self, x: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """factor * x + scale * y of [T, n], in the memory of x, and the norm of that, on the CPU in the memory of y."""
        y = y if scale == 1.0 else y * scale
        return residual_norm(y, x, self.factor, self.weight, self.bias, self.eps, self.on)


class Bare(RMSNorm):
    """In place of a norm between blocks that have their own and give all, not what they add: the rows as they are."""

    def __init__(self, on: DeviceKernels | None = None):
        super().__init__(None, 0.0, on=on)

    def __call__(self, x: Tensor) -> Tensor:
        return x

    def after(self, x: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """y twice."""
        return y, y


class Whole(RMSNorm):
    """The norm behind such a block."""

    def __init__(self, norm: RMSNorm):
        self.norm = norm

    def __call__(self, x: Tensor) -> Tensor:
        return self.norm(x)

    def after(self, x: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """y and its norm."""
        return y, self.norm(y)


class LayerNorm(RMSNorm):
    """(x - mean) / deviation * weight (+ bias) over the last dimension, with a norm's numbers."""

    def __init__(self, norm: RMSNorm, eps: float):
        super().__init__(norm.weight, eps, norm.bias, norm.on)

    def __call__(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight, self.bias, self.eps, self.on)

    def after(self, x: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """x + scale * y of [T, n], in the memory of y, and the norm of that."""
        y = residual(x, y, scale)
        return y, self(y)


class Weighed(RMSNorm):
    """The norm behind a part of which what it adds counts `factor` times."""

    def __init__(self, norm: RMSNorm, factor: float):
        super().__init__(norm.weight, norm.eps, norm.bias, norm.on)
        self.factor = factor

    def after(self, x: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """x + factor * scale * y of [T, n], and the norm of that, in the memory of the two as `RMSNorm`."""
        return super().after(x, y, self.factor * scale)


class HeadNorm:
    """Norm of queries or keys [T, H, d]: by head, or over all heads at once where the weight is that wide."""

    def __init__(self, norm: RMSNorm):
        if norm.weight is None:
            raise ValueError("a head norm needs a weight")
        self.rule, self.on = HeadRule(norm.weight, norm.bias, norm.eps), norm.on

    def __call__(self, x: Tensor) -> Tensor:
        return head_norm(x, self.rule, self.on)
