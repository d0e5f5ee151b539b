"""PagedKVCache: keys and values of all sequences in blocks, in the number format the user chose."""

from typing import Literal

import torch
from torch import Tensor

KvType = Literal["f16", "bf16", "f32", "q8_0"]

_DTYPE = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}
_GROUP = 32  # elements that share a scale in q8_0


class _Plane:
    """Rows [n_slots, width] of one layer's keys or values."""

    def __init__(self, n_slots: int, width: int, kv_type: KvType):
        self.width = width
        self.codes = torch.zeros(n_slots, width, dtype=_DTYPE.get(kv_type, torch.int8))
        self.scales = torch.zeros(n_slots, -(-width // _GROUP), dtype=torch.float16) if kv_type == "q8_0" else None

    def write(self, slots: Tensor, rows: Tensor) -> None:
        if self.scales is None:
            self.codes[slots] = rows.to(self.codes.dtype)
            return
        padded = torch.nn.functional.pad(rows, (0, -self.width % _GROUP)).view(len(rows), -1, _GROUP)
        scales = padded.abs().amax(-1) / 127.0  # [T, groups]
        inverse = torch.where(scales > 0, 1.0 / scales, 0.0)
        codes = (padded * inverse[..., None]).round()
        self.scales[slots] = scales.half()
        self.codes[slots] = codes.flatten(1)[:, : self.width].to(torch.int8)

    def read(self, slots: Tensor) -> Tensor:
        rows = self.codes.index_select(0, slots).float()
        if self.scales is None:
            return rows
        scales = self.scales.index_select(0, slots).float().repeat_interleave(_GROUP, -1)[:, : self.width]
        return rows * scales


class PagedKVCache:
    """The tensors behind the block tables; slot = block * block_size + offset."""

    def __init__(self, widths: list[tuple[int, int]], n_blocks: int, block_size: int, kv_type: KvType):
        self.block_size = block_size
        self.planes = [
            tuple(_Plane(n_blocks * block_size, width, kv_type) for width in pair if width) for pair in widths
        ]

    def write(self, layer: int, slots: Tensor, *rows: Tensor) -> None:
        """Store this step's keys (and values), each [T, width] float32, at `slots` [T]."""
        for plane, plane_rows in zip(self.planes[layer], rows, strict=True):
            plane.write(slots, plane_rows)

    def read(self, layer: int, blocks: Tensor, length: int) -> tuple[Tensor, ...]:
        """The first `length` rows of a sequence, [length, width] float32 each, by its block table."""
        offsets = torch.arange(length)
        slots = blocks.long()[offsets // self.block_size] * self.block_size + offsets % self.block_size
        return tuple(plane.read(slots) for plane in self.planes[layer])


def bytes_per_slot(widths: list[tuple[int, int]], kv_type: KvType) -> int:
    """Bytes that one token takes in all layers."""
    total = 0
    for width in (width for pair in widths for width in pair):
        total += width + 2 * -(-width // _GROUP) if kv_type == "q8_0" else width * _DTYPE[kv_type].itemsize
    return total
