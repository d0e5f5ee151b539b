"""Linear maps and embeddings whose weights stay as the file has them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gmoe.kernels.formats import QuantTensor
from gmoe.kernels.ops import Activations, DeviceKernels, Linears, Rows


class QuantLinear:
    """x [T, in] float32 -> x @ weight.T + bias, [T, out] float32; on the CPU in the memory of `out` if given."""

    def __init__(
        self, weight: QuantTensor, bias: Tensor | None, activations: Activations, on: DeviceKernels | None = None
    ):
        self.weight = weight
        self.bias = bias
        self.activations, self.on = activations, on
        self._map = Linears([(weight, bias)], activations, on)

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        return self._map(x, out)[0]

    def __len__(self) -> int:
        return self.weight.shape[0]

    def plus(self, bias: Tensor | None) -> "QuantLinear":
        """The same map with this bias."""
        return self if bias is None else QuantLinear(self.weight, bias, self.activations, self.on)

    def rows(self, begin: int, end: int) -> "QuantLinear":
        """The same map, only these outputs."""
        shape = (end - begin, self.weight.shape[1])
        weight = QuantTensor(self.weight.data[begin:end], self.weight.format, shape)
        return QuantLinear(weight, None if self.bias is None else self.bias[begin:end], self.activations, self.on)


def picked(m: QuantLinear, rows: Sequence[int]) -> QuantLinear:
    """The same map, only these outputs in this order, copied."""
    order = list(rows)
    weight = QuantTensor(m.weight.data[order], m.weight.format, (len(order), m.weight.shape[1]))
    return QuantLinear(weight, None if m.bias is None else m.bias[order], m.activations, m.on)


def beside(*maps: QuantLinear) -> Linears:
    """Maps of the same rows as one call with a result for each."""
    return Linears([(m.weight, m.bias) for m in maps], maps[0].activations, maps[0].on)


class QuantEmbedding:
    """ids [T] -> rows [T, D] float32 on `device`, dequantized exactly; the table and the ids are on the CPU."""

    def __init__(self, weight: QuantTensor, device: torch.device, on: DeviceKernels | None = None):
        self.weight = weight
        self._rows = Rows(weight, device, on)

    def __len__(self) -> int:
        return self.weight.shape[0]

    def __call__(self, ids: Tensor) -> Tensor:
        return self._rows(ids)
