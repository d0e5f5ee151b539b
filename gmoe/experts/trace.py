"""Routing traces: which experts every token chose; recorded, saved as .npz, loaded, replayed without the model.

The file is a compressed .npz: `header` (JSON text: format, model, fingerprint, n_layer, n_expert, expert_bytes by
layer) and one row for each token and layer: `step` int32 (number of the forward pass), `request` int32, `phase` uint8
(0 prefill, 1 decode), `layer` int16, `position` int32, `ids` int16 [N, k], `weights` float16 [N, k]; where they were
recorded `scores` float16 [N, E], the router's own; where requests were summed up before their rows were forgotten
`matrices` uint16 [n, n_layer, n_expert], how many tokens each expert served.
"""

import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gmoe.whole import whole

FORMAT = 1
ZIP = b"PK\3\4"  # how an .npz begins
MOST_BYTES, MOST_TIMES = 1 << 28, 64  # a larger file is not packed more tightly: it would fill the memory
MOST_LAYERS, MOST_EXPERTS = 10_000, np.iinfo(np.int16).max
ROWS = {"step": np.int32, "request": np.int32, "phase": np.uint8, "layer": np.int16, "position": np.int32}
EXTRAS = {"scores": np.float16, "matrices": np.uint16}


class TraceError(ValueError):
    """A file that is no trace, or one of another model; the text is one sentence that names the file."""


class DamagedError(TraceError):
    """A file that was a trace of this model, as far as can be seen."""


@dataclass(frozen=True)
class Header:
    """Whose routing it is."""

    model: str
    fingerprint: str
    n_layer: int
    n_expert: int
    expert_bytes: tuple[int, ...]  # of one expert, by layer; 0 where a layer routes nothing
    tasks: tuple[str, ...] = ()  # what request n was about; empty: nobody said

    def task(self, request: int) -> str:
        """What a request was about, as far as somebody said."""
        return self.tasks[request] if 0 <= request < len(self.tasks) else ""

    @classmethod
    def read(cls, said: dict[str, Any]) -> "Header":
        """From what JSON gives; raises TypeError or ValueError."""
        return cls(**{**said, **{name: tuple(said.get(name, ())) for name in ("expert_bytes", "tasks")}})


class Event(NamedTuple):
    """One layer of one forward pass."""

    step: int
    request: int
    phase: int
    layer: int
    ids: NDArray[np.int16]  # [T, k]
    weights: NDArray[np.float32]  # [T, k]
    scores: NDArray[np.float16] | None  # [T, E], the router's own


@dataclass(frozen=True)
class Trace:
    """Rows in the order in which they ran; all arrays have N rows."""

    header: Header
    rows: Mapping[str, NDArray[Any]]  # the columns of `ROWS`
    ids: NDArray[np.int16]  # [N, k]
    weights: NDArray[np.float32]  # [N, k]
    scores: NDArray[np.float16] | None = None  # [N, E]
    matrices: NDArray[np.uint16] | None = None  # [n, n_layer, n_expert]

    def __len__(self) -> int:
        return len(self.ids)

    def events(self) -> Iterator[Event]:
        """Each layer of each pass, in order; the request and phase are those of its last row."""
        step, layer = self.rows["step"], self.rows["layer"]
        ends = np.flatnonzero((np.diff(step) != 0) | (np.diff(layer) != 0)) + 1
        start = 0
        for end in [*ends.tolist(), len(self)] if len(self) else []:
            where = {name: int(column[end - 1]) for name, column in self.rows.items() if name != "position"}
            scores = None if self.scores is None else self.scores[start:end]
            yield Event(**where, ids=self.ids[start:end], weights=self.weights[start:end], scores=scores)
            start = end

    def decoding(self) -> "Trace":
        """What was generated alone, without `matrices`."""
        return self._some(self.rows["phase"] == 1)

    def tail(self, passes: int) -> "Trace":
        """The last passes alone, without `matrices`."""
        step = self.rows["step"]
        steps = np.unique(step)
        from_row = int(np.searchsorted(step, steps[-passes])) if 0 < passes < len(steps) else 0
        return self._some(slice(from_row, None))

    def _some(self, which: "slice | NDArray[np.bool_]") -> "Trace":
        """These rows, without `matrices`."""
        rows = {name: column[which] for name, column in self.rows.items()}
        scores = None if self.scores is None else self.scores[which]
        return Trace(self.header, rows, self.ids[which], self.weights[which], scores)

    def save(self, path: Path) -> None:
        """Write it whole or not at all, but for rows whose weights are no numbers; raises OSError."""
        with np.errstate(over="ignore"):
            weights = self.weights.astype(np.float16)
        numbers = np.asarray(np.isfinite(weights).all(axis=1))
        if not numbers.all():
            replace(self._some(numbers), matrices=self.matrices).save(path)
            return
        header = json.dumps({"format": FORMAT, **asdict(self.header)})
        columns: dict[str, Any] = {"header": np.array(header), "ids": self.ids, "weights": weights}
        columns |= {name: column for name in EXTRAS if (column := getattr(self, name)) is not None}
        with whole(path) as part, part.open("wb") as file:
            np.savez_compressed(file, **columns, **dict[str, Any](self.rows))

    @classmethod
    def load(cls, path: Path, fingerprint: str | None = None) -> "Trace":
        """Read a trace; raises OSError, or TraceError where it is damaged or not of the model with this fingerprint."""
        data = path.read_bytes()
        refused = f"{path}: not a routing trace, or a damaged one"
        try:
            if not zipfile.is_zipfile(io.BytesIO(data)):
                raise ValueError("it is no whole .npz")
            size = sum(column.file_size for column in zipfile.ZipFile(io.BytesIO(data)).infolist())
            if size > max(MOST_BYTES, MOST_TIMES * len(data)):
                raise ValueError(f"its columns would take {size} bytes")
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                if "header" not in file.files:
                    raise TraceError(f"{refused} (it has no header)")
                header = json.loads(str(file["header"]))
                if header.pop("format") != FORMAT:
                    raise TraceError(f"{refused} (its format is unknown)")
                if fingerprint is not None and header.get("fingerprint") != fingerprint:
                    raise TraceError(f"{path}: a trace of another model ({header.get('model')})")
                columns = {name: file[name] for name in file.files}
            trace = cls(
                Header.read(header),
                {name: columns[name].astype(dtype, casting="safe") for name, dtype in ROWS.items()},
                columns["ids"].astype(np.int16, casting="safe"),
                columns["weights"].astype(np.float32, casting="safe"),
                *(
                    columns[name].astype(kind, casting="safe") if name in columns else None
                    for name, kind in EXTRAS.items()
                ),
            )
            trace.check()
        except TraceError:
            raise
        except Exception as error:  # numpy and zipfile raise a dozen kinds over damaged bytes
            began = ZIP.startswith(data[: len(ZIP)])  # or nothing at all was written
            raise (DamagedError if began else TraceError)(f"{refused} ({error})") from None
        return trace

    def check(self) -> None:
        """Raises ValueError where shapes or numbers cannot be."""
        h, layer = self.header, self.rows["layer"]
        if not isinstance(h.n_layer, int) or not isinstance(h.n_expert, int) or min(h.n_layer, h.n_expert) < 0:
            raise ValueError("its header is none")
        if not isinstance(h.model, str) or not isinstance(h.fingerprint, str):
            raise ValueError("its header is none")
        if h.n_expert > MOST_EXPERTS or h.n_layer > MOST_LAYERS:
            raise ValueError(f"{h.n_layer} layers of {h.n_expert} experts are more than there can be")
        if any(not isinstance(n, int) or n < 0 for n in h.expert_bytes) or not all(isinstance(t, str) for t in h.tasks):
            raise ValueError("its header is none")
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
        if self.scores is not None and self.scores.shape != (len(self), h.n_expert):
            raise ValueError("its scores are not one an expert")
        if self.matrices is not None and self.matrices.shape[1:] != (h.n_layer, h.n_expert):
            raise ValueError("its matrices have another shape than the model")
