"""The truth: dequantize any format in plain torch, bit for bit as gguf-py does."""

from collections.abc import Callable

import numpy as np
import torch
from gmoe.kernels.formats import Plane, QuantFormat, QuantTensor
from gmoe.kernels.grids import grid, sign_bytes
from torch import Tensor

_TORCH = {"f2": torch.float16, "f4": torch.float32, "f8": torch.float64, "u1": torch.uint8, "i1": torch.int8}
_TORCH |= {"u2": torch.uint16, "i2": torch.int16, "u4": torch.uint32, "i4": torch.int32, "i8": torch.int64}


class _Writable:
    """The memory of an array without numpy's read-only mark, which torch would warn of."""

    def __init__(self, array: np.ndarray):
        self.array = array  # kept alive
        self.__array_interface__ = {**array.__array_interface__, "data": (array.ctypes.data, False)}


def as_tensor(array: np.ndarray | Tensor) -> Tensor:
    """A tensor over the same memory, without a copy; it must not be written where the array may not."""
    if isinstance(array, Tensor):
        return array
    return torch.from_numpy(np.asarray(_Writable(array)))


def dequantize(w: QuantTensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The values of `w`, of `w.shape`; computed in float32 and then converted to `dtype`."""
    format = w.format
    data = as_tensor(w.data).reshape(-1, format.type_size).contiguous()
    if format.block_size == 1:
        field = format.fields[0].dtype
        plain = data.view(torch.bfloat16 if format.name == "BF16" else _TORCH[field])
        return plain.reshape(w.shape).to(dtype, copy=True)
    values = _SCHEMES[format.scales](_Blocks(data, format))
    return values.reshape(w.shape).to(dtype)


class _Blocks:
    """The fields of blocks [B, type_size]."""

    def __init__(self, data: Tensor, format: QuantFormat):
        self.data = data
        self.format = format

    def field(self, name: str) -> Tensor:
        """A field as it is stored, [B, count]."""
        row = next(f for f in self.format.fields if f.name == name)
        begin = self.format.offset(name)
        return self.data[:, begin : begin + row.nbytes].contiguous().view(_TORCH[row.dtype])

    def f32(self, name: str = "d") -> Tensor:
        """A field as float32, [B, count]."""
        return self.field(name).float()

    def integers(self, name: str) -> Tensor:
        """A field as int64, [B, count]."""
        return self.field(name).long()

    def bits(self, plane: Plane) -> Tensor:
        """The plane's bits of each element, int64 [B, block_size]."""
        stored = self.field(plane.field).view(torch.uint8).long().view(len(self.data), -1, 1, plane.run)
        shifts = (torch.arange(plane.lanes) * plane.bits).view(1, 1, -1, 1)
        bits: Tensor = (stored >> shifts) & ((1 << plane.bits) - 1)
        return bits.reshape(len(self.data), -1)

    def codes(self) -> Tensor:
        """The values before scaling, float32 [B, groups, group]."""
        format = self.format
        assert format.low is not None
        code = self.bits(format.low)
        if format.high is not None:
            code = code | self.bits(format.high) << format.low.bits
        if format.codebook:
            code = torch.tensor(format.codebook)[code]
        elif format.low.bits == 8:
            code = code - ((code & 128) << 1)
        values: Tensor = (code - format.bias).float()
        return values.view(len(code), -1, format.group or format.block_size)


def _d(b: _Blocks) -> Tensor:
    return b.f32()[..., None] * b.codes()


def _d_m(b: _Blocks) -> Tensor:
    return b.f32()[..., None] * b.codes() + b.f32("m")[..., None]


def _k2(b: _Blocks) -> Tensor:
    packed = b.integers("scales")
    scale, low = b.f32() * (packed & 15).float(), b.f32("dmin") * (packed >> 4).float()
    return scale[..., None] * b.codes() - low[..., None]


def _k3(b: _Blocks) -> Tensor:
    packed = b.integers("scales")  # 8 bytes of low nibbles, 4 bytes of the two bits above
    low = torch.cat((packed[:, :8] & 15, packed[:, :8] >> 4), -1)
    high = torch.cat([(packed[:, 8:] >> shift) & 3 for shift in (0, 2, 4, 6)], -1)
    scale = b.f32() * ((low | high << 4) - 32).float()
    return scale[..., None] * b.codes()


def _k4(b: _Blocks) -> Tensor:
    packed = b.integers("scales")  # 4 scales, 4 mins, then their last four as nibbles with the bits above spread
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scale = torch.cat((first & 63, (third & 15) | (first >> 6) << 4), -1)
    low = torch.cat((second & 63, third >> 4 | (second >> 6) << 4), -1)
    return (b.f32() * scale.float())[..., None] * b.codes() - (b.f32("dmin") * low.float())[..., None]


def _i8(b: _Blocks) -> Tensor:
    return (b.f32() * b.f32("scales"))[..., None] * b.codes()


def _iq4_xs(b: _Blocks) -> Tensor:
    low = torch.stack((b.integers("scales_l") & 15, b.integers("scales_l") >> 4), -1).flatten(1)
    high = (b.integers("scales_h") >> torch.arange(0, 16, 2)) & 3
    return (b.f32() * ((low | high << 4) - 32).float())[..., None] * b.codes()


def _e8m0(b: _Blocks) -> Tensor:
    e = b.integers("e")  # half of 2 ** (e - 127), denormal below 2
    bits = torch.where(e < 2, 0x00200000 << e.clamp(max=1), (e - 1).clamp(min=0) << 23)
    return bits.int().view(torch.float32)[..., None] * b.codes()


def _ue4m3(b: _Blocks) -> Tensor:
    byte = b.integers("d")
    exponent, mantissa = byte >> 3 & 15, (byte & 7).float()
    value = torch.where(exponent == 0, mantissa * 2.0**-9, (1 + mantissa / 8) * torch.exp2(exponent.float() - 7))
    value = torch.where((byte == 0) | (byte == 0x7F), 0.0, value * 0.5)
    return value[..., None] * b.codes()


def _tq1_0(b: _Blocks) -> Tensor:
    powers = torch.tensor([1, 3, 9, 27, 81])
    qs, qh = b.integers("qs"), b.integers("qh")  # five base-3 digits a byte, four in qh
    runs = [_digits(part, powers) for part in (qs[:, :32], qs[:, 32:])] + [_digits(qh, powers[:4])]
    return b.f32() * (torch.cat(runs, -1) - 1).float()


def _digits(stored: Tensor, powers: Tensor) -> Tensor:
    return (((stored[:, None, :] * powers[:, None]) & 255) * 3 >> 8).flatten(1)


def _points(name: str, index: Tensor) -> Tensor:
    return torch.from_numpy(grid(name))[index]


def _signs(stored: Tensor) -> Tensor:
    """Sign bytes [B, n] -> +-1 float32 [B, n * 8]."""
    return 1.0 - 2.0 * ((stored[..., None] >> torch.arange(8)) & 1).flatten(1).float()


def _packed_signs(words: Tensor) -> Tensor:
    """Four times seven sign bits in each word [B, n] -> +-1 float32 [B, n * 32]."""
    index = (words[..., None] >> torch.tensor([0, 7, 14, 21])) & 127
    return _signs(torch.from_numpy(sign_bytes()).long()[index].flatten(1))


def _nibbles(stored: Tensor) -> Tensor:
    return torch.stack((stored & 15, stored >> 4), -1).flatten(1).float()


def _scaled(scale: Tensor, values: Tensor) -> Tensor:
    """A scale a group [B, g] times values [B, n]."""
    return (scale[..., None] * values.view(*scale.shape, -1)).flatten(1)


def _iq2_xxs(b: _Blocks) -> Tensor:
    words = b.integers("qs").view(len(b.data), 8, 2)
    index = (words[..., :1] >> torch.tensor([0, 8, 16, 24])) & 255
    scale = b.f32() * (0.5 + (words[..., 1] >> 28).float()) * 0.25
    return _scaled(scale, _points("IQ2_XXS", index).flatten(1)) * _packed_signs(words[..., 1])


def _iq2_xs(b: _Blocks) -> Tensor:
    qs = b.integers("qs")
    signs = _signs(torch.from_numpy(sign_bytes()).long()[qs >> 9])
    scale = b.f32() * (0.5 + _nibbles(b.integers("scales"))) * 0.25
    return _scaled(scale, _points("IQ2_XS", qs & 511).flatten(1)) * signs


def _iq2_s(b: _Blocks) -> Tensor:
    high = ((b.integers("qh")[..., None] >> torch.tensor([0, 2, 4, 6])) & 3).flatten(1)
    scale = b.f32() * (0.5 + _nibbles(b.integers("scales"))) * 0.25
    points = _points("IQ2_S", b.integers("qs") | high << 8).flatten(1)
    return _scaled(scale, points) * _signs(b.integers("signs"))


def _iq3_xxs(b: _Blocks) -> Tensor:
    words = b.integers("scales")
    scale = b.f32() * (0.5 + (words >> 28).float()) * 0.5
    return _scaled(scale, _points("IQ3_XXS", b.integers("qs")).flatten(1)) * _packed_signs(words)


def _iq3_s(b: _Blocks) -> Tensor:
    high = ((b.integers("qh")[..., None] >> torch.arange(8)) & 1).flatten(1)
    scale = b.f32() * (1 + 2 * _nibbles(b.integers("scales")))
    points = _points("IQ3_S", b.integers("qs") | high << 8).flatten(1)
    return _scaled(scale, points) * _signs(b.integers("signs"))


_DELTA = 0.125  # the IQ1 types' points are moved by it, up or down


def _iq1_s(b: _Blocks) -> Tensor:
    qh = b.integers("qh")
    scale = b.f32() * (2 * ((qh >> 12) & 7) + 1).float()
    delta = torch.where((qh & 0x8000) == 0, _DELTA, -_DELTA)
    index = b.integers("qs") | ((qh[..., None] >> torch.tensor([0, 3, 6, 9])) & 7).flatten(1) << 8
    points = _points("IQ1_S", index).view(*scale.shape, -1) + delta[..., None]
    return (scale[..., None] * points).flatten(1)


def _iq1_m(b: _Blocks) -> Tensor:
    words = b.integers("scales")
    nibbles = words >> 12  # of the one f16 scale, lowest first
    packed = (nibbles << torch.tensor([0, 4, 8, 12])).sum(-1, keepdim=True)
    d = (packed - ((packed & 0x8000) << 1)).short().view(torch.float16).float()
    scale = d * (2 * ((words[..., None] >> torch.tensor([0, 3, 6, 9])) & 7).flatten(1) + 1).float()
    qh = torch.stack((b.integers("qh") & 15, b.integers("qh") >> 4), -1).flatten(1)
    delta = torch.where((qh & 8) == 0, _DELTA, -_DELTA)
    points = _points("IQ1_M", b.integers("qs") | (qh & 7) << 8) + delta[..., None]
    return _scaled(scale, points.flatten(1))


_SCHEMES: dict[str, Callable[[_Blocks], Tensor]] = {
    "d": _d,
    "d_m": _d_m,
    "k2": _k2,
    "k3": _k3,
    "k4": _k4,
    "i8": _i8,
    "iq4_xs": _iq4_xs,
    "e8m0": _e8m0,
    "ue4m3": _ue4m3,
    "tq1_0": _tq1_0,
    "iq2_xxs": _iq2_xxs,
    "iq2_xs": _iq2_xs,
    "iq2_s": _iq2_s,
    "iq3_xxs": _iq3_xxs,
    "iq3_s": _iq3_s,
    "iq1_s": _iq1_s,
    "iq1_m": _iq1_m,
}
