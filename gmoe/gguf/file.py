"""GGUFFile: a GGUF model over one memory map a part; nothing is copied, no count is believed before it is checked."""

import mmap
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, overload

import gguf
import numpy as np

from gmoe.kernels.bpe import places
from gmoe.kernels.formats import FORMAT_BY_TYPE, FORMATS, QuantFormat, QuantTensor

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_KEY = 65535
MAX_DIMS = 4
MOST_SAID = 600  # letters of what is wrong with a file
SPLIT_NAME = re.compile(r"^(?P<stem>.*)-(?P<no>\d{5})-of-(?P<count>\d{5})\.gguf$", re.DOTALL)

_SCALARS = {0: "u1", 1: "i1", 2: "u2", 3: "i2", 4: "u4", 5: "i4", 6: "f4", 7: "u1", 10: "u8", 11: "i8", 12: "f8"}
_BOOL, _STRING, _ARRAY = 7, 8, 9


class GGUFError(ValueError):
    """A file that gmoe cannot use; its text is one sentence that names the file."""


def _sentence(text: str) -> str:
    """What a file may have written into it on one line, of bounded length, and nothing that a terminal obeys."""
    line = "".join(c if c.isprintable() else " " if c.isspace() else repr(c)[1:-1] for c in text[: 2 * MOST_SAID])
    line = " ".join(line.split())
    return line if len(line) <= MOST_SAID else f"{line[:MOST_SAID]}..."


class InvalidFile(GGUFError):
    """The bytes are not a well-formed GGUF file."""

    def __init__(self, file: str, what: str):
        super().__init__(f"{file} is not a valid GGUF file: {_sentence(what)}")


class UnsupportedModel(GGUFError):
    """Well-formed, but gmoe cannot run it: `key` is the metadata key or tensor, `supported` says what would do."""

    def __init__(self, file: str, key: str, supported: str):
        super().__init__(f"{file}: {_sentence(key)}: {_sentence(supported)}")
        self.file, self.key, self.supported = file, key, supported


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies; `shape` is row-major, the reverse of the order in the file."""

    name: str
    shape: tuple[int, ...]
    format: QuantFormat
    part: int
    offset: int  # bytes from the beginning of the part
    nbytes: int


class Strings(Sequence[str]):
    """An array of strings of the file, each decoded when it is asked for."""

    def __init__(self, data: np.ndarray, places: np.ndarray):
        self._data, self._places = data, places  # uint8; where each string and the end begins

    @property
    def packed(self) -> tuple[np.ndarray, int]:
        """The bytes as the file has them, uint8 without a copy, each string after its length in 8; and how many."""
        return self._data, len(self)

    def starting_with(self, firsts: bytes) -> list[int]:
        """Where strings stand whose first byte is one of these."""
        filled = np.flatnonzero(np.diff(self._places) > 8)
        first = self._data[self._places[filled] + 8]
        found: list[int] = filled[np.isin(first, np.frombuffer(firsts, np.uint8))].tolist()
        return found

    def __len__(self) -> int:
        return len(self._places) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[n] for n in range(*index.indices(len(self)))]
        n = index + len(self) if index < 0 else index
        if not 0 <= n < len(self):
            raise IndexError(f"{index} is not one of {len(self)} strings")
        return self._data[self._places[n] + 8 : self._places[n + 1]].tobytes().decode("utf-8", "replace")


class _Part:
    """The header of one file of a model."""

    def __init__(self, path: Path, number: int):
        self.path = path
        self.number = number
        self.name = str(path)
        try:
            if path.exists() and not path.is_file():
                raise GGUFError(f"{self.name} cannot be read: it is not a regular file")
            with path.open("rb") as file:
                if not file.seek(0, 2):
                    raise InvalidFile(self.name, "it is empty")
                self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise GGUFError(f"{self.name} cannot be read: {error.strerror or error}") from None
        self.size = len(self.map)
        self.bytes = np.frombuffer(self.map, dtype=np.uint8)
        self.at = 0
        self.metadata: dict[str, Any] = {}
        self.spans: dict[str, slice] = {}  # key -> the bytes of its type and value
        self.tensors: dict[str, TensorInfo] = {}
        self._read()

    def _fail(self, what: str) -> InvalidFile:
        return InvalidFile(self.name, what)

    def _take(self, kind: str, what: str) -> Any:
        size = np.dtype(kind).itemsize
        if self.at + size > self.size:
            raise self._fail(f"it ends inside {what}")
        value = np.frombuffer(self.map, dtype="<" + kind, count=1, offset=self.at)[0].item()
        self.at += size
        return value

    def _text(self, what: str, most: int | None = None) -> str:
        length = self._take("u8", what)
        if length > self.size - self.at or (most is not None and length > most):
            raise self._fail(f"the length of {what} ({length}) is more than there can be")
        raw = self.map[self.at : self.at + length]
        self.at += length
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self._fail(f"{what} is not UTF-8") from None

    def _read(self) -> None:
        if self.map[:4] != MAGIC:
            raise self._fail(f"it begins with {self.map[:4]!r}, not with {MAGIC!r}")
        self.at = 4
        version = self._take("u4", "the version")
        if version and version & 0xFFFF == 0:
            raise UnsupportedModel(
                self.name, "version", "the file is big-endian; only little-endian files are supported"
            )
        if version not in VERSIONS:
            raise UnsupportedModel(self.name, "version", f"{version} is not supported; supported: 2, 3")
        n_tensors, n_keys = self._take("u8", "the header"), self._take("u8", "the header")
        if n_keys * 13 + n_tensors * 24 > self.size:
            raise self._fail(f"{n_tensors} tensors and {n_keys} metadata keys do not fit into {self.size} bytes")
        for _ in range(n_keys):
            key = self._text("a metadata key", MAX_KEY)
            if key in self.metadata:
                raise self._fail(f"the key {key!r} stands there twice")
            begin = self.at
            self.metadata[key] = self._value(self._take("u4", f"the type of {key}"), key)
            self.spans[key] = slice(begin, self.at)
        self._read_tensors(n_tensors)

    def _value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self._text(f"the value of {key}")
        if kind == _ARRAY:
            return self._array(key)
        if kind not in _SCALARS:
            raise self._fail(f"the value of {key} has the unknown type {kind}")
        value = self._take(_SCALARS[kind], f"the value of {key}")
        return bool(value) if kind == _BOOL else value

    def _array(self, key: str) -> Any:
        kind, count = self._take("u4", f"the array {key}"), self._take("u8", f"the array {key}")
        if kind == _ARRAY:
            raise UnsupportedModel(self.name, key, "arrays of arrays are not supported")
        if kind != _STRING and kind not in _SCALARS:
            raise self._fail(f"the array {key} has the unknown type {kind}")
        size = 8 if kind == _STRING else np.dtype(_SCALARS[kind]).itemsize
        if count * size > self.size - self.at:
            raise self._fail(f"the array {key} of {count} entries does not fit into the file")
        if kind == _STRING:
            return self._strings(key, count)
        values = np.frombuffer(self.map, dtype="<" + _SCALARS[kind], count=count, offset=self.at)
        self.at += count * size
        return values != 0 if kind == _BOOL else values

    def _strings(self, key: str, count: int) -> Strings:
        rest = self.bytes[self.at :]
        try:
            begins = places(rest, count)
        except ValueError:
            raise self._fail(f"it ends inside the array {key}") from None
        self.at += int(begins[-1])
        return Strings(rest[: begins[-1]], begins)

    def _read_tensors(self, count: int) -> None:
        alignment = self.metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1) or alignment > 1 << 20:
            raise self._fail(f"general.alignment is {alignment!r}, not a power of two")
        found = [self._tensor() for _ in range(count)]
        base = -(-self.at // alignment) * alignment
        for name, shape, format, offset in found:
            if name in self.tensors:
                raise self._fail(f"the tensor {name!r} stands there twice")
            n = format.row_bytes(shape[-1]) if shape[-1] % format.block_size == 0 else 0
            if not n:
                raise self._fail(
                    f"a row of {name} has {shape[-1]} elements, {format.name} has blocks of {format.block_size}"
                )
            for rows in shape[:-1]:
                n *= rows
            if offset % alignment:
                raise self._fail(f"the tensor {name} does not begin at a multiple of {alignment}")
            if base + offset + n > self.size:
                raise self._fail(f"it ends inside the tensor {name} (is it truncated?)")
            self.tensors[name] = TensorInfo(name, shape, format, self.number, base + offset, n)
        ordered = sorted(self.tensors.values(), key=lambda info: info.offset)
        for before, after in zip(ordered, ordered[1:], strict=False):
            if before.offset + before.nbytes > after.offset:
                raise self._fail(f"the tensors {before.name} and {after.name} overlap")

    def _tensor(self) -> tuple[str, tuple[int, ...], QuantFormat, int]:
        name = self._text("a tensor's name", MAX_KEY)
        n_dims = self._take("u4", f"the tensor {name}")
        if not 1 <= n_dims <= MAX_DIMS:
            raise self._fail(f"the tensor {name} has {n_dims} dimensions, 1 to {MAX_DIMS} are possible")
        shape = tuple(self._take("u8", f"the tensor {name}") for _ in range(n_dims))[::-1]
        if not all(shape):
            raise self._fail(f"the tensor {name} has an empty dimension")
        kind, offset = self._take("u4", f"the tensor {name}"), self._take("u8", f"the tensor {name}")
        if kind not in FORMAT_BY_TYPE:
            called = next((f" ({t.name})" for t in gguf.GGMLQuantizationType if t == kind), "")
            raise UnsupportedModel(
                self.name, name, f"quant type {kind}{called} is not supported; supported: {', '.join(FORMATS)}"
            )
        return name, shape, FORMAT_BY_TYPE[kind], offset


class GGUFFile:
    """A model's metadata and tensors; a split model is opened from any of its parts."""

    def __init__(self, path: Path, parts: Sequence[_Part]):
        self.path = path
        self.parts = [part.path for part in parts]
        self.metadata: Mapping[str, Any] = parts[0].metadata
        self.tensors: dict[str, TensorInfo] = {}
        self._spans = parts[0].spans
        self._bytes = [part.bytes for part in parts]
        self._held: dict[str, np.ndarray] = {}
        for part in parts:
            for name, info in part.tensors.items():
                if name in self.tensors:
                    raise InvalidFile(str(part.path), f"the tensor {name!r} stands in another part too")
                self.tensors[name] = info

    @classmethod
    def open(cls, path: Path | str) -> "GGUFFile":
        """Map a file and read its header; raises `GGUFError`."""
        path = Path(path)
        first = _Part(path, 0)
        count = first.metadata.get("split.count", 1)
        if type(count) is not int or count < 0:
            raise InvalidFile(str(path), f"split.count is {count!r}, not a number of parts")
        if count <= 1:
            return cls(path, [first])
        match = SPLIT_NAME.match(path.name)
        if match is None or int(match["count"]) != count:
            raise InvalidFile(
                str(path), f"it is one of {count} parts, but is not named like model-00001-of-{count:05}.gguf"
            )
        paths = [path.with_name(f"{match['stem']}-{n + 1:05}-of-{count:05}.gguf") for n in range(count)]
        missing = next((p for p in paths if not p.exists()), None)
        if missing is not None:
            raise InvalidFile(str(path), f"the part {missing.name} is missing beside it")
        parts = [_Part(p, n) for n, p in enumerate(paths)]
        for n, part in enumerate(parts):
            if part.metadata.get("split.no") != n or part.metadata.get("split.count") != count:
                raise InvalidFile(str(part.path), f"it does not say that it is part {n + 1} of {count}")
        file = cls(path, parts)
        want = parts[0].metadata.get("split.tensors.count", len(file.tensors))
        if want != len(file.tensors):
            raise InvalidFile(str(path), f"its parts hold {len(file.tensors)} tensors instead of {want}")
        return file

    @property
    def architecture(self) -> str:
        """`general.architecture`, empty where that is no text."""
        name = self.metadata.get("general.architecture")
        return name if isinstance(name, str) else ""

    def view(self, name: str) -> QuantTensor:
        """A tensor over the map, without a copy; the map lives as long as a view does."""
        info = self.tensors[name]
        raw = self._held.get(name)
        if raw is None:
            raw = self._bytes[info.part][info.offset : info.offset + info.nbytes]
        return QuantTensor(raw.reshape(*info.shape[:-1], -1), info.format, info.shape)

    @property
    def maps(self) -> list[np.ndarray]:
        """The bytes of every part, uint8, as they are mapped."""
        return list(self._bytes)

    def hold(self, names: Iterable[str]) -> None:
        """Read these tensors into memory of their own, where no other traffic drives them out; `view` gives that then.

        Raises `GGUFError`.
        """
        for name in names:
            info = self.tensors[name]
            data = np.empty(info.nbytes, dtype=np.uint8)
            with self.parts[info.part].open("rb", buffering=0) as file:
                file.seek(info.offset)
                got = 0
                while got < info.nbytes:
                    n = file.readinto(data[got:].data)
                    if not n:
                        raise InvalidFile(str(self.path), f"it ends inside the tensor {name} (is it truncated?)")
                    got += n
                if hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(file.fileno(), info.offset, info.nbytes, os.POSIX_FADV_DONTNEED)
            data.flags.writeable = False
            self._held[name] = data

    def stored(self, key: str) -> np.ndarray:
        """A key's type and value as the file stores them, uint8, without a copy."""
        return self._bytes[0][self._spans[key]]

    def close(self) -> None:
        """Forget the map; the system unmaps it with the last view."""
        self._bytes = []
        self._held = {}

    def __enter__(self) -> "GGUFFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
