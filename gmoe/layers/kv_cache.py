"""PagedKVCache: keys and values of all sequences in blocks, in the number format the user chose."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gmoe.kernels.kv import BLOCK, KvLayer, KvShape, KvType
from gmoe.kernels.ops import DeviceKernels, store

__all__ = ["KeepsBeside", "KvLayer", "KvShape", "KvType", "PagedKVCache", "bytes_per_slot"]


class PagedKVCache:
    """The layers behind the block tables; slot = block * block_size + offset.

    `beside` has, by the number of the layer, what some keep besides, in the same blocks.
    """

    def __init__(
        self,
        shapes: Sequence[KvShape],
        n_blocks: int,
        block_size: int,
        kv_type: KvType,
        device: torch.device,
        on: DeviceKernels | None = None,
        beside: Mapping[int, KvShape] | None = None,
    ):
        if block_size != BLOCK:
            raise ValueError(f"blocks of {block_size} tokens; the kernels know blocks of {BLOCK}")
        self.on = on
        self.layers = [KvLayer(shape, n_blocks, kv_type, device) for shape in shapes]
        self.beside = {n: KvLayer(shape, n_blocks, kv_type, device) for n, shape in (beside or {}).items()}

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store this step's keys [T, heads, dk] and values [T, heads, dv] float32 at `slots` [T]."""
        store(self.layers[layer], slots, keys, values, self.on)


class KeepsBeside:
    """An attention that keeps more in the cache than its keys and values."""

    beside_shape: KvShape


def bytes_per_slot(shapes: Sequence[KvShape], kv_type: KvType) -> int:
    """Bytes that one token takes in all layers."""
    return sum(shape.nbytes(kv_type) for shape in shapes)
