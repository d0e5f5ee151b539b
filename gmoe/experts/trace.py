"""Routing traces: which experts every token chose; recorded, saved as .npz, loaded, replayed without the model.

The file is a compressed .npz: `header` (JSON text: format, model, fingerprint, n_layer, n_expert, expert_bytes by
layer) and one row for each token and layer: `step` int32 (number of the forward pass), `request` int32, `phase` uint8
(0 prefill, 1 decode), `layer` int16, `position` int32, `ids` int16 [N, k], `weights` float32 [N, k].
"""

import csv
import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FORMAT = 1
ROWS = {"step": np.int32, "request": np.int32, "phase": np.uint8, "layer": np.int16, "position": np.int32}


class TraceError(ValueError):
    """A file that is no trace, or one of another model; the text is one sentence that names the file."""


@dataclass(frozen=True)
class Header:
    """Whose routing it is."""

    model: str
    fingerprint: str
    n_layer: int
    n_expert: int
    expert_bytes: tuple[int, ...]  # of one expert, by layer; 0 where a layer routes nothing


class Event(NamedTuple):
    """One layer of one forward pass."""

    step: int
    request: int
    phase: int
    layer: int
    ids: NDArray[np.int16]  # [T, k]
    weights: NDArray[np.float32]  # [T, k]


@dataclass(frozen=True)
class Trace:
    """Rows in the order in which they ran; all arrays have N rows."""

    header: Header
    rows: Mapping[str, NDArray[Any]]  # the columns of `ROWS`
    ids: NDArray[np.int16]  # [N, k]
    weights: NDArray[np.float32]  # [N, k]

    def __len__(self) -> int:
        return len(self.ids)

    def events(self) -> Iterator[Event]:
        """Each layer of each pass, in order; the request and phase are those of its last row."""
        step, layer = self.rows["step"], self.rows["layer"]
        ends = np.flatnonzero((np.diff(step) != 0) | (np.diff(layer) != 0)) + 1
        start = 0
        for end in [*ends.tolist(), len(self)] if len(self) else []:
            where = {name: int(column[end - 1]) for name, column in self.rows.items() if name != "position"}
            yield Event(**where, ids=self.ids[start:end], weights=self.weights[start:end])
            start = end

    def save(self, path: Path) -> None:
        """Write it whole or not at all; raises OSError as the file system does."""
        header = json.dumps({"format": FORMAT, **asdict(self.header)})
        part = path.with_name(path.name + ".part")
        try:
            columns: dict[str, Any] = {"header": np.array(header), "ids": self.ids, "weights": self.weights}
            with part.open("wb") as file:
                np.savez_compressed(file, **columns, **dict[str, Any](self.rows))
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path, fingerprint: str | None = None) -> "Trace":
        """Read a trace; raises TraceError where it is damaged, or not of the model with this fingerprint."""
        try:
            if not zipfile.is_zipfile(path):
                raise ValueError("it is no whole .npz")
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                columns = {name: file[name] for name in file.files}
            header = json.loads(str(columns.pop("header")))
            if header.pop("format") != FORMAT:
                raise ValueError("its format is unknown")
            trace = cls(
                Header(**{**header, "expert_bytes": tuple(header["expert_bytes"])}),
                {name: columns[name].astype(dtype, casting="safe") for name, dtype in ROWS.items()},
                columns["ids"].astype(np.int16, casting="safe"),
                columns["weights"].astype(np.float32, casting="safe"),
            )
            trace.check()
        except (zipfile.BadZipFile, zlib.error, KeyError, ValueError, TypeError, EOFError, AttributeError) as error:
            raise TraceError(f"{path}: not a routing trace, or a damaged one ({error})") from None
        if fingerprint is not None and trace.header.fingerprint != fingerprint:
            raise TraceError(f"{path}: a trace of another model ({trace.header.model})")
        return trace

    def check(self) -> None:
        """Raises ValueError where shapes or numbers cannot be."""
        h, layer = self.header, self.rows["layer"]
        if len(h.expert_bytes) != h.n_layer:
            raise ValueError("expert_bytes has not one entry a layer")
        if self.ids.ndim != 2 or any(len(column) != len(self) for column in self.rows.values()):
            raise ValueError("its columns differ in length")
        if self.weights.shape != self.ids.shape or not np.isfinite(self.weights).all():
            raise ValueError("its weights are not numbers, one an id")
        if len(self) and not (0 <= layer.min() <= layer.max() < h.n_layer):
            raise ValueError("a layer is out of range")
        if self.ids.size and not (0 <= self.ids.min() <= self.ids.max() < h.n_expert):
            raise ValueError("an expert is out of range")


class Recorder:
    """Appends routing events as a model runs; one `begin_step` a forward pass, then one `record` a routed layer."""

    def __init__(self, header: Header):
        self.header = header
        self._step = -1
        self._now: tuple[NDArray[Any], ...] = ()
        self._events: list[tuple[int, int, tuple[NDArray[Any], ...], NDArray[Any], NDArray[Any]]] = []

    def begin_step(self, request: NDArray[Any], phase: NDArray[Any], position: NDArray[Any]) -> None:
        """The rows of the pass that starts: request, phase and position [T]."""
        self._step += 1
        self._now = request, phase, position

    def record(self, layer: int, ids: NDArray[Any], weights: NDArray[Any]) -> None:
        """ids and weights [t, k] of the last t rows of the pass; copied, since buffers are reused."""
        self._events.append((self._step, layer, self._now, ids.astype(np.int16), weights.astype(np.float32)))

    def trace(self) -> Trace:
        """What has been recorded so far."""
        lengths = [len(event[3]) for event in self._events]
        columns: dict[str, NDArray[Any]] = {
            "step": np.repeat(np.array([event[0] for event in self._events], dtype=np.int32), lengths),
            "layer": np.repeat(np.array([event[1] for event in self._events], dtype=np.int16), lengths),
        }
        for n, name in enumerate(("request", "phase", "position")):
            parts = [event[2][n][-len(event[3]) :] for event in self._events]
            columns[name] = np.concatenate(parts).astype(ROWS[name]) if parts else np.zeros(0, ROWS[name])
        ids = [event[3] for event in self._events] or [np.zeros((0, 0), np.int16)]
        weights = [event[4] for event in self._events] or [np.zeros((0, 0), np.float32)]
        return Trace(self.header, columns, np.concatenate(ids), np.concatenate(weights))


def fingerprint(architecture: str, tensors: Mapping[str, Any]) -> str:
    """What tells models apart: the architecture, and name, shape and format of every tensor of the file."""
    words = [architecture, *(f"{name} {info.shape} {info.format.name}" for name, info in sorted(tensors.items()))]
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:32]


def from_route_csv(path: Path) -> Trace:
    """A `route_trace v1` of BigMoeOnEdge; raises TraceError. Prefill is one pass, each decode step one."""
    try:
        with path.open(newline="") as file:
            lines = file.read().splitlines()
        if lines[0] != "# route_trace v1":
            raise ValueError("its first line is not '# route_trace v1'")
        said = [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in lines if line[0] == "#"]
        model = next(words for words in said if "model" in words)
        sizes = {int(words["layer"]): int(words["expert_bytes"]) for words in said if "layer" in words}
        k, n_layer = int(model["n_expert_used"]), int(model["n_layer"])
        table = list(csv.DictReader(line for line in lines if line[0] != "#"))
        columns = {name: np.array([int(row[name]) for row in table]).reshape(-1, k) for name in _CSV}
        if (columns["slot"] != np.arange(k)).any():
            raise ValueError("a token lacks some of its experts")
        weights = np.array([float(row["weight"]) for row in table], dtype=np.float32).reshape(-1, k)
        first = {name: columns[name][:, 0] for name in ("turn", "phase", "step", "layer")}
        decode = first["phase"] == 1
        rows = {
            "step": np.where(decode, first["step"], first["step"][~decode].max(initial=0)),
            "request": first["turn"],
        }
        rows |= {"phase": first["phase"], "layer": first["layer"], "position": first["step"]}
        expert_bytes = tuple(sizes.get(layer, 0) for layer in range(n_layer))
        name = Path(model["model"]).name
        header = Header(name, f"csv:{name}", n_layer, int(model["n_expert"]), expert_bytes)
        typed = {key: column.astype(ROWS[key]) for key, column in rows.items()}
        trace = Trace(header, typed, columns["expert"].astype(np.int16), weights)
        trace.check()
    except (ValueError, KeyError, IndexError, StopIteration, TypeError) as error:
        raise TraceError(f"{path}: not a whole route_trace v1 ({error})") from None
    return trace


_CSV = ("turn", "phase", "step", "layer", "slot", "expert")
