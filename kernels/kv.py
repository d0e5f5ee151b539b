"""One layer of the KV cache as the kernels see it, and how it is written and read in plain torch."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

KvType = Literal["f16", "bf16", "f32", "q8_0"]

BLOCK = 32  # tokens of a block
GROUP = 32  # elements of a token's head that share a scale in q8_0
_DTYPE = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32, "q8_0": torch.int8}


@dataclass(frozen=True)
class KvShape:
    """What one layer keeps of a token, or of `every` so many: `heads` keys of `dk` and values of `dv` elements."""

    heads: int
    dk: int
    dv: int
    every: int = 1  # a power of two

    @property
    def rows(self) -> int:
        """Rows of a block; where a row is of more tokens than a block has, only one of several blocks needs its own."""
        return max(1, BLOCK // self.every)

    def row(self, slots: Tensor) -> Tensor:
        """Where the rows are that end with these tokens, as a layer counts them."""
        return slots if self.every == 1 else slots // BLOCK * self.rows + slots % BLOCK * self.rows // BLOCK

    def nbytes(self, kind: KvType) -> int:
        """Bytes of a token."""
        groups = -(-self.dk // GROUP) + -(-self.dv // GROUP) if kind == "q8_0" else 0
        return -(-self.heads * ((self.dk + self.dv) * _DTYPE[kind].itemsize + 2 * groups) * self.rows // BLOCK)


class KvLayer:
    """Keys [n_blocks, heads, dk, 32] and values [n_blocks, heads, 32, dv]; slot = block * 32 + offset.

    A block of keys lies with its tokens beside each other, so that one load holds the same element of 16 keys.
    """

    def __init__(self, shape: KvShape, n_blocks: int, kind: KvType, device: Any = None):
        self.shape, self.kind = shape, kind
        self.compiled: Any = None  # the layer as the CPU kernels take it, once they have
        heads, dk, dv = shape.heads, shape.dk, shape.dv
        n_blocks = -(-n_blocks * shape.rows // BLOCK)
        self.keys = zeros((n_blocks, heads, dk, BLOCK), _DTYPE[kind], device)
        self.values = zeros((n_blocks, heads, BLOCK, dv), _DTYPE[kind], device)
        self.key_scales: Tensor | None = None
        self.value_scales: Tensor | None = None
        if kind == "q8_0":
            self.key_scales = zeros((n_blocks, heads, -(-dk // GROUP), BLOCK), torch.float16, device)
            self.value_scales = zeros((n_blocks, heads, BLOCK, -(-dv // GROUP)), torch.float16, device)

    def write(self, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store keys [T, heads, dk] and values [T, heads, dv], float32, at slots [T]."""
        block, at = slots // BLOCK, slots % BLOCK
        if self.key_scales is None or self.value_scales is None:
            self.keys[block, :, :, at] = keys.to(self.keys.dtype)
            self.values[block, :, at] = values.to(self.values.dtype)
            return
        self.keys[block, :, :, at], self.key_scales[block, :, :, at] = _to_q8(keys)
        self.values[block, :, at], self.value_scales[block, :, at] = _to_q8(values)

    def read(self, blocks: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """The first `length` tokens of a sequence by its block table: [L, heads, dk] and [L, heads, dv] float32."""
        some = blocks[: -(-length // BLOCK)].long()
        keys, values = self.keys[some].float(), self.values[some].float()
        if self.key_scales is not None and self.value_scales is not None:
            keys = keys * self.key_scales[some].float().repeat_interleave(GROUP, 2)[:, :, : self.shape.dk]
            values = values * self.value_scales[some].float().repeat_interleave(GROUP, 3)[..., : self.shape.dv]
        return keys.permute(0, 3, 1, 2).flatten(0, 1)[:length], values.transpose(1, 2).flatten(0, 1)[:length]

    def apart(self) -> "KvLayer":
        """The same memory as a layer of one head, whose blocks are each head's, one behind the other, of each block."""
        shape = KvShape(1, self.shape.dk, self.shape.dv, self.shape.every)
        layer = KvLayer(shape, 0, self.kind, self.keys.device)
        layer.keys, layer.values = (part.flatten(0, 1)[:, None] for part in (self.keys, self.values))
        if self.key_scales is not None and self.value_scales is not None:
            layer.key_scales = self.key_scales.flatten(0, 1)[:, None]
            layer.value_scales = self.value_scales.flatten(0, 1)[:, None]
        return layer

    def picked(self, slots: Tensor) -> "KvLayer":
        """A layer of n blocks with copies of the tokens at slots [n, 32]."""
        layer, (block, at) = KvLayer(self.shape, 0, self.kind, self.keys.device), (slots // BLOCK, slots % BLOCK)
        layer.keys = self.keys[block, :, :, at].permute(0, 2, 3, 1).contiguous()
        layer.values = self.values[block, :, at].transpose(1, 2).contiguous()
        if self.key_scales is not None and self.value_scales is not None:
            layer.key_scales = self.key_scales[block, :, :, at].permute(0, 2, 3, 1).contiguous()
            layer.value_scales = self.value_scales[block, :, at].transpose(1, 2).contiguous()
        return layer


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: Any) -> Tensor:
    """Zeros that take no memory on the CPU before they are written."""
    count = math.prod(shape) * dtype.itemsize
    if not count or (device is not None and torch.device(device).type != "cpu"):
        return torch.zeros(shape, dtype=dtype, device=device)
    try:
        return torch.from_numpy(np.zeros(count, np.uint8)).view(dtype).view(shape)
    except (MemoryError, ValueError):  # numpy's, whose words are not for those who chose a context
        gib = count / (1 << 30)
        raise MemoryError(
            f"{shape[0] * BLOCK} tokens of KV cache do not fit into memory: a layer's would take {gib:.0f} GiB; "
            "a smaller context or fewer sequences would help"
        ) from None


def _to_q8(x: Tensor) -> tuple[Tensor, Tensor]:
    """[T, heads, d] -> codes int8 [T, heads, d] and scales float16 [T, heads, ceil(d / 32)]."""
    padded = torch.nn.functional.pad(x, (0, -x.shape[-1] % GROUP)).unflatten(-1, (-1, GROUP))
    scales = padded.abs().amax(-1) / 127.0
    inverse = torch.where(scales > 0, 1.0 / scales, 0.0)
    codes = (padded * inverse[..., None]).round().to(torch.int8).flatten(-2)[..., : x.shape[-1]]
    return codes, scales.half()
