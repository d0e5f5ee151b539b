"""Rounding of activations before they meet quantized weights, as llama.cpp's CPU kernels do it."""

import torch
from gmoe.kernels.formats import QuantFormat
from torch import Tensor


def round_activations(x: Tensor, format: QuantFormat) -> Tensor:
    """x [T, in] float32 as a kernel for `format` sees it: 8-bit blocks of 256 or 32, f16, bf16, or unchanged."""
    if format.block_size == 1:
        kinds = {"F16": torch.float16, "BF16": torch.bfloat16}
        return x.to(kinds[format.name]).float() if format.name in kinds else x
    return _blocks_of_8_bits(x, 256 if format.block_size == 256 else 32)


def _blocks_of_8_bits(x: Tensor, size: int) -> Tensor:
    blocks = x.reshape(-1, size)
    scale = blocks.abs().amax(-1, keepdim=True) / 127.0
    codes = torch.where(scale > 0, blocks / scale, 0.0).round().clamp(-127, 127)
    return (codes * scale).view(x.shape)
