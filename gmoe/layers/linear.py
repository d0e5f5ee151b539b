"""Linear maps and embeddings whose weights stay as the file has them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gmoe.kernels.formats import QuantTensor
from gmoe.kernels.ops import Activations, DeviceKernels, Linears, Rows, scaled


class QuantLinear:
    """x [T, in] float32 -> scale * (x @ weight.T) + bias, [T, out] float32; on the CPU in `out` if given."""

    def __init__(
        self,
        weight: QuantTensor,
        bias: Tensor | None,
        activations: Activations,
        on: DeviceKernels | None = None,
        scale: float = 1.0,
    ):
        self.weight = weight
        self.bias = bias
        self.activations, self.on, self.scale = activations, on, scale
        self._map = Linears([(weight, bias)], activations, on, [scale])

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        return self._map(x, out)[0]

    def __len__(self) -> int:
        return self.weight.shape[0]

    def plus(self, bias: Tensor | None) -> "QuantLinear":
        """The same map with this bias."""
        return self if bias is None else self._of(self.weight, bias)

    def times(self, scale: float) -> "QuantLinear":
        """The same map, what it gives multiplied with `scale`; for one without a bias."""
        assert self.bias is None
        return QuantLinear(self.weight, None, self.activations, self.on, self.scale * scale)

    def rows(self, begin: int, end: int) -> "QuantLinear":
        """The same map, only these outputs."""
        shape = (end - begin, self.weight.shape[1])
        weight = QuantTensor(self.weight.data[begin:end], self.weight.format, shape)
        return self._of(weight, None if self.bias is None else self.bias[begin:end])

    def picked(self, rows: Sequence[int]) -> "QuantLinear":
        """The same map, only these outputs in this order, copied."""
        order = list(rows)
        weight = QuantTensor(self.weight.data[order], self.weight.format, (len(order), self.weight.shape[1]))
        return self._of(weight, None if self.bias is None else self.bias[order])

    def _of(self, weight: QuantTensor, bias: Tensor | None) -> "QuantLinear":
        return QuantLinear(weight, bias, self.activations, self.on, self.scale)


def beside(*maps: QuantLinear) -> Linears:
    """Maps of the same rows as one call with a result for each."""
    return Linears([(m.weight, m.bias) for m in maps], maps[0].activations, maps[0].on, [m.scale for m in maps])


class QuantEmbedding:
    """ids [T] -> rows [T, D] float32 on `device`, dequantized exactly, times `scale` if it is not 1.

    The table and the ids are on the CPU.
    """

    def __init__(self, weight: QuantTensor, device: torch.device, on: DeviceKernels | None = None, scale: float = 1.0):
        self.weight, self.on = weight, on
        self._rows = Rows(weight, device, on)
        self._scale = None if scale == 1.0 else torch.tensor([scale], device=device)

    def __len__(self) -> int:
        return self.weight.shape[0]

    def __call__(self, ids: Tensor) -> Tensor:
        rows = self._rows(ids)
        return rows if self._scale is None else scaled(rows, self._scale, self.on)
