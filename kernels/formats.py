"""Quant types as rows of data: each block layout stated once, for the reference, the kernels and the encoders."""

from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import gguf
import numpy as np


@dataclass(frozen=True)
class Field:
    """A run of `count` numbers of numpy type `dtype` in a block."""

    name: str
    dtype: str
    count: int

    @property
    def nbytes(self) -> int:
        """Bytes that the field takes."""
        return np.dtype(self.dtype).itemsize * self.count


@dataclass(frozen=True)
class Plane:
    """Bits of one code: element i is in byte (i // (run * lanes)) * run + i % run, lane (i // run) % lanes."""

    field: str
    bits: int
    run: int

    @property
    def lanes(self) -> int:
        """Elements that share a byte."""
        return 8 // self.bits


@dataclass(frozen=True)
class QuantFormat:
    """One ggml type; a type without a `low` plane is plain numbers, a grid type or base-3, decoded by its `scales`."""

    name: str  # as GGMLQuantizationType spells it
    block_size: int  # elements a block
    fields: tuple[Field, ...]  # in file order
    low: Plane | None = None  # the low bits of the code
    high: Plane | None = None  # the bits above them
    bias: int = 0  # subtracted from the code
    group: int = 0  # elements that share a scale; 0: the whole block
    scales: str = "plain"  # name of the scale scheme
    codebook: tuple[int, ...] = ()  # code -> value, where values are not evenly spaced

    @cached_property
    def type_size(self) -> int:
        """Bytes a block."""
        return sum(field.nbytes for field in self.fields)

    def row_bytes(self, n: int) -> int:
        """Bytes of a row of `n` elements; `n` must be a multiple of `block_size`."""
        if n % self.block_size:
            raise ValueError(f"a row of {n} elements is not a multiple of {self.name}'s block of {self.block_size}")
        return n // self.block_size * self.type_size

    def offset(self, name: str) -> int:
        """Where in the block a field begins."""
        names = [field.name for field in self.fields]
        return sum(field.nbytes for field in self.fields[: names.index(name)])


@dataclass(frozen=True)
class QuantTensor:
    """Quantized rows: `data` is uint8, shape[:-1] + (row_bytes,), numpy (maybe a view of the map) or torch."""

    data: Any
    format: QuantFormat
    shape: tuple[int, ...]


def _plain(name: str, dtype: str) -> QuantFormat:
    return QuantFormat(name, 1, (Field("x", dtype, 1),))


def _u8(name: str, count: int) -> Field:
    return Field(name, "u1", count)


_D, _M, _DMIN = Field("d", "f2", 1), Field("m", "f2", 1), Field("dmin", "f2", 1)
_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_FP4 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # E2M1, doubled

_ROWS = (
    _plain("F64", "f8"),
    _plain("F32", "f4"),
    _plain("F16", "f2"),
    _plain("BF16", "u2"),
    _plain("I8", "i1"),
    _plain("I16", "i2"),
    _plain("I32", "i4"),
    _plain("I64", "i8"),
    QuantFormat("Q4_0", 32, (_D, _u8("qs", 16)), Plane("qs", 4, 16), bias=8, scales="d"),
    QuantFormat("Q4_1", 32, (_D, _M, _u8("qs", 16)), Plane("qs", 4, 16), scales="d_m"),
    QuantFormat(
        "Q5_0", 32, (_D, _u8("qh", 4), _u8("qs", 16)), Plane("qs", 4, 16), Plane("qh", 1, 1), bias=16, scales="d"
    ),
    QuantFormat("Q5_1", 32, (_D, _M, _u8("qh", 4), _u8("qs", 16)), Plane("qs", 4, 16), Plane("qh", 1, 1), scales="d_m"),
    QuantFormat("Q8_0", 32, (_D, Field("qs", "i1", 32)), Plane("qs", 8, 32), scales="d"),
    QuantFormat("Q2_K", 256, (_u8("scales", 16), _u8("qs", 64), _D, _DMIN), Plane("qs", 2, 32), group=16, scales="k2"),
    QuantFormat(
        "Q3_K",
        256,
        (_u8("hmask", 32), _u8("qs", 64), _u8("scales", 12), _D),
        Plane("qs", 2, 32),
        Plane("hmask", 1, 32),
        bias=4,
        group=16,
        scales="k3",
    ),
    QuantFormat("Q4_K", 256, (_D, _DMIN, _u8("scales", 12), _u8("qs", 128)), Plane("qs", 4, 32), group=32, scales="k4"),
    QuantFormat(
        "Q5_K",
        256,
        (_D, _DMIN, _u8("scales", 12), _u8("qh", 32), _u8("qs", 128)),
        Plane("qs", 4, 32),
        Plane("qh", 1, 32),
        group=32,
        scales="k4",
    ),
    QuantFormat(
        "Q6_K",
        256,
        (_u8("ql", 128), _u8("qh", 64), Field("scales", "i1", 16), _D),
        Plane("ql", 4, 64),
        Plane("qh", 2, 32),
        bias=32,
        group=16,
        scales="i8",
    ),
    QuantFormat("IQ4_NL", 32, (_D, _u8("qs", 16)), Plane("qs", 4, 16), scales="d", codebook=_IQ4),
    QuantFormat(
        "IQ4_XS",
        256,
        (_D, Field("scales_h", "u2", 1), _u8("scales_l", 4), _u8("qs", 128)),
        Plane("qs", 4, 16),
        group=32,
        scales="iq4_xs",
        codebook=_IQ4,
    ),
    QuantFormat("MXFP4", 32, (_u8("e", 1), _u8("qs", 16)), Plane("qs", 4, 16), scales="e8m0", codebook=_FP4),
    QuantFormat("NVFP4", 64, (_u8("d", 4), _u8("qs", 32)), Plane("qs", 4, 8), group=16, scales="ue4m3", codebook=_FP4),
    QuantFormat("TQ2_0", 256, (_u8("qs", 64), _D), Plane("qs", 2, 32), bias=1, scales="d"),
    QuantFormat("TQ1_0", 256, (_u8("qs", 48), _u8("qh", 4), _D), scales="tq1_0"),
    QuantFormat("IQ2_XXS", 256, (_D, Field("qs", "u4", 16)), scales="iq2_xxs"),
    QuantFormat("IQ2_XS", 256, (_D, Field("qs", "u2", 32), _u8("scales", 8)), scales="iq2_xs"),
    QuantFormat("IQ2_S", 256, (_D, _u8("qs", 32), _u8("signs", 32), _u8("qh", 8), _u8("scales", 8)), scales="iq2_s"),
    QuantFormat("IQ3_XXS", 256, (_D, _u8("qs", 64), Field("scales", "u4", 8)), scales="iq3_xxs"),
    QuantFormat("IQ3_S", 256, (_D, _u8("qs", 64), _u8("qh", 8), _u8("signs", 32), _u8("scales", 4)), scales="iq3_s"),
    QuantFormat("IQ1_S", 256, (_D, _u8("qs", 32), Field("qh", "u2", 8)), scales="iq1_s"),
    QuantFormat("IQ1_M", 256, (_u8("qs", 32), _u8("qh", 16), Field("scales", "u2", 4)), scales="iq1_m"),
)

FORMATS = MappingProxyType({row.name: row for row in _ROWS})
FORMAT_BY_TYPE = MappingProxyType({int(gguf.GGMLQuantizationType[name]): row for name, row in FORMATS.items()})
