"""Floats to blocks: every type that gmoe can write, its codes and scales searched in C++, its bytes packed here."""

from collections.abc import Callable
from functools import cache

import numpy as np
from gmoe.kernels.cpu import _cpu
from gmoe.kernels.formats import FORMATS, Plane, QuantFormat, QuantTensor

Floats = np.ndarray
Fields = dict[str, np.ndarray]  # field name -> what it holds, [blocks, count]

_PLAIN = ("F32", "F16", "BF16")
# scale scheme -> least and largest whole scale of a group, largest whole minimum
_WHOLE = {"k2": (0, 15, 15), "k4": (0, 63, 63), "k3": (-32, 31, 0), "i8": (-128, 127, 0), "iq4_xs": (-32, 31, 0)}
_SEARCHED = ("d", "d_m", "e8m0", *_WHOLE)


def encodable() -> list[str]:
    """The types that `quantize` can write, by their GGMLQuantizationType names."""
    searched = [name for name, row in FORMATS.items() if row.low and row.scales in _SEARCHED and name != "TQ2_0"]
    return [*_PLAIN, *searched]


def quantize(x: Floats, format: QuantFormat, weight: Floats | None = None, threads: int = 0) -> QuantTensor:
    """x [.., n] -> its rows in `format`, n a multiple of the block; `weight` [n] says how much each column counts.

    Minimises the sum of weight * error ** 2, block by block. Raises ValueError for a type without an encoder, for rows
    that are not whole blocks, for values or weights that are not finite, and for negative weights.
    """
    if format.name not in encodable():
        raise ValueError(f"gmoe cannot write {format.name}; it can write {', '.join(encodable())}")
    shape, x = x.shape, np.ascontiguousarray(x, dtype=np.float32)
    row_bytes = format.row_bytes(shape[-1])
    if not np.isfinite(x).all():
        raise ValueError(f"a value that is not finite cannot be written as {format.name}")
    if format.name in _PLAIN:
        return QuantTensor(_plain(x, format.name).reshape(*shape[:-1], row_bytes), format, shape)
    if weight is not None:
        weight = _weights(weight, shape[-1])
    fields = _search(x.reshape(-1, format.block_size), format, weight, shape[-1], threads)
    parts = [np.ascontiguousarray(fields[f.name], f"<{f.dtype}").view(np.uint8) for f in format.fields]
    data = np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)
    return QuantTensor(data.reshape(*shape[:-1], row_bytes), format, shape)


def _plain(x: Floats, name: str) -> np.ndarray:
    if name == "BF16":
        bits = x.view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").view(np.uint8)
    if name == "F16":
        x = x.clip(-65504, 65504)
    return x.astype("<f2" if name == "F16" else "<f4").view(np.uint8)


def _weights(weight: Floats, n: int) -> Floats:
    weight = np.ascontiguousarray(weight, dtype=np.float32)
    if weight.shape != (n,):
        raise ValueError(f"{n} columns need {n} importance weights, not {weight.shape}")
    if not np.isfinite(weight).all() or (weight < 0).any():
        raise ValueError("importance weights must be finite and not negative")
    mean = float(weight.mean(dtype=np.float64))  # a column that never counted still gets a sane code
    return np.maximum(weight / mean, 1e-4).astype(np.float32) if mean > 0 else np.ones(n, np.float32)


@cache
def _points(format: QuantFormat) -> tuple[tuple[float, ...], np.ndarray | None]:
    """What a code can stand for, ascending, and the code of each if that is not its index."""
    if format.codebook:
        values, first = np.unique(np.array(format.codebook), return_index=True)  # of two zeros the first
        return tuple(map(float, values)), first.astype(np.uint8)
    assert format.low is not None
    if format.low.bits == 8:  # symmetric, since kernels may negate
        return tuple(map(float, range(-127, 128))), (np.arange(255) - 127).astype(np.int8).view(np.uint8)
    bits = format.low.bits + (format.high.bits if format.high else 0)
    return tuple(float(code - format.bias) for code in range(1 << bits)), None


def _search(x: Floats, format: QuantFormat, weight: Floats | None, cols: int, threads: int) -> Fields:
    group = format.group or format.block_size
    low, high, minimum = _WHOLE.get(format.scales, (0, 0, 0))
    affine = format.scales in ("d_m", "k2", "k4")
    points, stored = _points(format)
    power = format.scales == "e8m0"
    scheme = _cpu.Scheme(
        format.block_size, group, affine, format.scales != "d_m", low, high, minimum, power, list(points)
    )
    n, groups = len(x), format.block_size // group
    d, dmin = np.zeros((n, 1), np.float32), np.zeros((n, 1), np.float32)
    scales, mins = np.zeros((n, groups), np.int16), np.zeros((n, groups), np.int16)
    codes = np.zeros((n, format.block_size), np.uint8)
    address = [a.ctypes.data for a in (d, dmin, scales, mins, codes)]
    _cpu.quantize(scheme, x.ctypes.data, n, 0 if weight is None else weight.ctypes.data, cols, *address, threads)
    fields = _SCALES[format.scales](d, dmin, scales.astype(np.int32), mins.astype(np.int32))
    return fields | _planes(format, codes if stored is None else stored[codes])


def _planes(format: QuantFormat, codes: np.ndarray) -> Fields:
    """The codes' bits, spread over the planes' fields."""
    assert format.low is not None
    fields = {format.low.field: _pack(codes & ((1 << format.low.bits) - 1), format.low)}
    if format.high is not None:
        fields[format.high.field] = _pack(codes >> format.low.bits, format.high)
    row = next(f for f in format.fields if f.name == format.low.field)
    return fields if row.dtype == "u1" else fields | {row.name: fields[row.name].view(row.dtype)}


def _pack(bits: np.ndarray, plane: Plane) -> np.ndarray:
    lanes = bits.reshape(len(bits), -1, plane.lanes, plane.run)
    packed = lanes[:, :, 0].copy()
    for lane in range(1, plane.lanes):
        packed |= lanes[:, :, lane] << (lane * plane.bits)
    return packed.reshape(len(bits), -1)


Pack = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], Fields]  # d, dmin, scales, mins of blocks


def _d(d: np.ndarray, dmin: np.ndarray, scales: np.ndarray, mins: np.ndarray) -> Fields:
    return {"d": d}


def _d_m(d: np.ndarray, dmin: np.ndarray, scales: np.ndarray, mins: np.ndarray) -> Fields:
    return {"d": d, "m": -dmin}


def _e8m0(d: np.ndarray, dmin: np.ndarray, scales: np.ndarray, mins: np.ndarray) -> Fields:
    return {"e": d}


def _k2(d: np.ndarray, dmin: np.ndarray, scales: np.ndarray, mins: np.ndarray) -> Fields:
    return {"d": d, "dmin": dmin, "scales": scales | mins << 4}


def _k3(d: np.ndarray, dmin: np.ndarray, scales: np.ndarray, mins: np.ndarray) -> Fields:
    scales = scales + 32
    high = scales >> 4
    four = high[:, 0:4] | high[:, 4:8] << 2 | high[:, 8:12] << 4 | high[:, 12:16] << 6
    return {"d": d, "scales": np.concatenate((scales[:, :8] & 15 | (scales[:, 8:] & 15) << 4, four), 1)}


def _k4(d: np.ndarray, dmin: np.ndarray, scales: np.ndarray, mins: np.ndarray) -> Fields:
    first = scales[:, :4] | (scales[:, 4:] >> 4) << 6
    second = mins[:, :4] | (mins[:, 4:] >> 4) << 6
    third = scales[:, 4:] & 15 | (mins[:, 4:] & 15) << 4
    return {"d": d, "dmin": dmin, "scales": np.concatenate((first, second, third), 1)}


def _i8(d: np.ndarray, dmin: np.ndarray, scales: np.ndarray, mins: np.ndarray) -> Fields:
    return {"d": d, "scales": scales}


def _iq4_xs(d: np.ndarray, dmin: np.ndarray, scales: np.ndarray, mins: np.ndarray) -> Fields:
    scales = scales + 32
    low = scales[:, 0::2] & 15 | (scales[:, 1::2] & 15) << 4
    high = (scales >> 4 << np.arange(0, 16, 2)).sum(1, keepdims=True)
    return {"d": d, "scales_l": low, "scales_h": high}


_SCALES: dict[str, Pack] = {
    "d": _d,
    "d_m": _d_m,
    "e8m0": _e8m0,
    "k2": _k2,
    "k3": _k3,
    "k4": _k4,
    "i8": _i8,
    "iq4_xs": _iq4_xs,
}
