"""ExpertStore: where the experts are; here all of them are resident, straight in the memory map."""

import numpy as np

from gmoe.gguf.layout import ExpertLayout, ExpertStack
from gmoe.kernels.ops import ExpertMatrix, ExpertTable
from gmoe.kernels.reference import as_tensor, dequantize


class ExpertStore:
    """The experts of a file as tables of addresses, one a layer; nothing is copied."""

    def __init__(self, layout: ExpertLayout):
        self.layout = layout
        self._tables = {
            layer: ExpertTable(None if experts.gate is None else _matrix(experts.gate), *map(_matrix, experts[1:]))
            for layer, experts in layout.layers.items()
        }

    def table(self, layer: int) -> ExpertTable:
        """All experts of a layer."""
        return self._tables[layer]


def _matrix(stack: ExpertStack | None) -> ExpertMatrix:
    assert stack is not None
    address = np.array([matrix.ctypes.data for matrix in stack.matrices], dtype=np.int64)
    bias = None if stack.bias is None else dequantize(stack.bias).numpy()
    views = [as_tensor(matrix).numpy() for matrix in stack.matrices]
    return ExpertMatrix(stack.format, stack.rows, stack.cols, address, bias, stack.matrices, views.__getitem__)
