"""rewrite: a GGUF file made from another in one streaming pass; every offline tool is one edit."""

import os
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import gguf
import numpy as np

from gmoe.gguf.file import MAGIC, GGUFFile, TensorInfo
from gmoe.kernels.formats import QuantTensor

Edit = Callable[[TensorInfo, QuantTensor], Iterable[tuple[str, QuantTensor]]]
"""A tensor of the source -> what stands for it, by name: none drops it, one replaces it, two split it."""

UNCHANGED: Mapping[str, Any] = MappingProxyType({})

_CHUNK = 16 << 20
_KINDS = {"u1": 0, "i1": 1, "u2": 2, "i2": 3, "u4": 4, "i4": 5, "f4": 6, "b1": 7, "u8": 10, "i8": 11, "f8": 12}
_STRING, _ARRAY = 8, 9
_SPLIT_KEYS = frozenset({"split.no", "split.count", "split.tensors.count"})


def identity(info: TensorInfo, tensor: QuantTensor) -> Iterable[tuple[str, QuantTensor]]:
    """The edit that changes nothing."""
    return [(info.name, tensor)]


def rewrite(src: GGUFFile, dst: Path, edit: Edit, metadata: Mapping[str, Any] = UNCHANGED) -> None:
    """Write `dst`, one file whatever number of parts `src` has; it appears under its name only when it is whole.

    Keys keep their stored type and value but for those in `metadata`: None drops a key, a numpy scalar or array says
    its type, Python's int, float, bool, str and lists of one of them take the usual ones (u32, f32).
    """
    if dst.exists() and not dst.is_file():
        raise ValueError(f"{dst} is not a file that could be written anew; nothing was written")
    keys = _keys(src, metadata)
    alignment = metadata.get("general.alignment", src.metadata.get("general.alignment", 32))
    written: dict[str, tuple[QuantTensor, int]] = {}
    expected = {name: (_row(info), 0) for name, info in src.tensors.items()}
    temporary = dst.with_name(f".{dst.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("xb+") as file:
            begin = len(_header(keys, expected, alignment))  # right at once for an edit that keeps the names
            end = begin
            for name, info in src.tensors.items():
                for new_name, tensor in edit(info, src.view(name)):
                    if new_name in written:
                        raise ValueError(f"{dst}: two tensors would be named {new_name!r}")
                    written[new_name] = (QuantTensor(None, tensor.format, tensor.shape), end - begin)
                    end = _append(file, end, tensor, alignment)
            header = _header(keys, written, alignment)
            _move(file, begin, end, len(header) - begin)
            file.seek(0)
            file.write(header)
            file.truncate(end + len(header) - begin)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, dst)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}; nothing was written", str(dst)) from None
    finally:
        if temporary.exists():
            temporary.unlink()


def _row(info: TensorInfo) -> QuantTensor:
    return QuantTensor(None, info.format, info.shape)


def _keys(src: GGUFFile, metadata: Mapping[str, Any]) -> dict[str, bytes]:
    """Key -> its type and value as bytes."""
    keys = {key: bytes(src.stored(key)) for key in src.metadata if key not in _SPLIT_KEYS}
    for key, value in metadata.items():
        if value is None:
            keys.pop(key, None)
        else:
            keys[key] = _value(value)
    return keys


def _header(keys: Mapping[str, bytes], tensors: Mapping[str, tuple[QuantTensor, int]], alignment: int) -> bytes:
    out = [MAGIC, struct.pack("<IQQ", 3, len(tensors), len(keys))]
    for key, stored in keys.items():
        out += [_string(key), stored]
    for name, (tensor, offset) in tensors.items():
        shape, kind = tensor.shape[::-1], gguf.GGMLQuantizationType[tensor.format.name]
        out += [_string(name), struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)]
    raw = b"".join(out)
    return raw + bytes(-len(raw) % alignment)


def _append(file: BinaryIO, at: int, tensor: QuantTensor, alignment: int) -> int:
    """Write a tensor's bytes at `at`; returns where the next one begins."""
    data = np.ascontiguousarray(np.asarray(tensor.data)).reshape(-1)
    rows = int(np.prod(tensor.shape[:-1], dtype=np.int64))
    if data.dtype != np.uint8 or data.size != rows * tensor.format.row_bytes(tensor.shape[-1]):
        raise ValueError(f"{data.size} bytes are not a {tensor.format.name} tensor of shape {tensor.shape}")
    file.seek(at)
    file.write(data.data)
    file.write(bytes(-data.size % alignment))
    return file.tell()


def _move(file: BinaryIO, begin: int, end: int, distance: int) -> None:
    """Move the bytes begin..end of the file, in the order in which none is overwritten before it is read."""
    starts = range(begin, end, _CHUNK)
    if distance:
        for start in starts if distance < 0 else reversed(starts):
            file.seek(start)
            chunk = file.read(min(_CHUNK, end - start))
            file.seek(start + distance)
            file.write(chunk)


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> bytes:
    """A metadata value as the file stores it: its type, then itself."""
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    if isinstance(value, Mapping) or isinstance(value, bytes):
        raise TypeError(f"a metadata value cannot be a {type(value).__name__}")
    if np.ndim(value) == 0:
        array = _numbers(value)
        return struct.pack("<I", _KINDS[array.dtype.str[1:]]) + array.tobytes()
    if len(value) and isinstance(value[0], str):
        return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_string, value))
    array = _numbers(value)
    return struct.pack("<IIQ", _ARRAY, _KINDS[array.dtype.str[1:]], array.size) + array.tobytes()


def _numbers(value: Any) -> np.ndarray:
    """Little-endian numbers: numpy's keep their type, Python's become f32 or the first of u32, i32, u64, i64 to fit."""
    array = np.asarray(value)
    if not isinstance(value, np.ndarray | np.generic):
        if array.dtype.kind == "f":
            array = array.astype(np.float32)
        elif array.dtype.kind in "iu":
            kinds = (np.uint32, np.int32, np.uint64, np.int64)
            low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
            array = array.astype(next(k for k in kinds if np.iinfo(k).min <= low and high <= np.iinfo(k).max))
    return array.astype(array.dtype.newbyteorder("<"))
