"""A quant type's row of data as the Triton kernels read it: plain numbers, known when a kernel is compiled."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from gmoe.kernels.formats import FORMATS, Plane, QuantFormat
from gmoe.kernels.grids import grid, sign_bytes
from torch import Tensor

SPAN = 256  # elements of a row that a tile is wide: one block of the wide types, several of the narrow ones

_GROUPS = {"tq1_0": 256, "iq2_xxs": 32, "iq2_xs": 16, "iq2_s": 16, "iq3_xxs": 32, "iq3_s": 32, "iq1_s": 32, "iq1_m": 16}


@dataclass(frozen=True)
class Row:
    """`formats.QuantFormat` without its names: byte offsets in the block, planes, and the scheme as text."""

    name: str
    block: int  # elements
    bytes: int  # a block
    scheme: str
    group: int  # elements that share a scale
    run: int  # elements of a scale whose bytes lie one after the other
    bias: int
    codebook: bool
    low_at: int
    low_bits: int
    low_run: int
    high_at: int
    high_bits: int  # 0: no such plane
    high_run: int
    d_at: int
    m_at: int  # the second float, `m` or `dmin`
    scales_at: int
    qs_at: int
    qh_at: int
    signs_at: int


@cache
def row(name: str) -> Row:
    """The row of a format by its GGMLQuantizationType name; integers and F64 are no weights: `KeyError`."""
    format = FORMATS[name]
    if format.block_size == 1:
        return _plain(format)
    at = {field.name: format.offset(field.name) for field in format.fields}
    none = Plane("", 0, 1)
    low, high = format.low or none, format.high or none
    group = _GROUPS.get(format.scales) or format.group or format.block_size
    return Row(
        name=name,
        block=format.block_size,
        bytes=format.type_size,
        scheme=format.scales,
        group=group,
        run=min(low.run, group),
        bias=format.bias,
        codebook=bool(format.codebook),
        low_at=at.get(low.field, 0),
        low_bits=low.bits,
        low_run=low.run,
        high_at=at.get(high.field, 0),
        high_bits=high.bits,
        high_run=high.run,
        d_at=at.get("d", at.get("e", 0)),
        m_at=at.get("m", at.get("dmin", 0)),
        scales_at=at.get("scales", at.get("scales_l", 0)),
        qs_at=at.get("qs", 0),
        qh_at=at.get("qh", at.get("scales_h", 0)),
        signs_at=at.get("signs", 0),
    )


def _plain(format: QuantFormat) -> Row:
    if format.name not in ("F32", "F16", "BF16"):
        raise KeyError(format.name)
    return Row(format.name, 1, format.type_size, format.name, SPAN, 1, *(0, False), *(0, 0, 1) * 2, *(0,) * 6)


@cache
def table(name: str, device: torch.device) -> Tensor:
    """What a format looks up, float32 on `device`: its codebook or its grid; one zero where nothing."""
    format = FORMATS[name]
    if format.codebook:
        return torch.tensor(format.codebook, dtype=torch.float32, device=device)
    points = grid(name).ravel() if name.startswith("IQ") else np.zeros(1, np.float32)
    return torch.from_numpy(points.astype(np.float32)).to(device)


@cache
def signs(device: torch.device) -> Tensor:
    """Seven stored sign bits -> eight of even parity, int32 [128]."""
    return torch.from_numpy(sign_bytes().astype(np.int32)).to(device)
