"""TraceFile: MODEL.trace, what earlier runs learnt of a model's routing, and where this one leaves what it learns."""

import logging
import os
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gmoe.experts.analysis import counts
from gmoe.experts.expert_id import ExpertId
from gmoe.experts.matrices import Collection, of_trace
from gmoe.experts.trace import ROWS, DamagedError, Header, Trace, TraceError
from gmoe.experts.trace_csv import any_trace

ROWS_KEPT = 1 << 16
MATRICES_KEPT = 120


class TraceFile:
    """`trace` is what is known at the start, or None; `notices` what should be said about it.

    A `given` trace must be there and of this model, or it is a TraceError. One found beside the model that is not
    is left alone; one that is grows, even where another is given.
    """

    def __init__(self, model: Path, given: Path | None, header: Header):
        self.header = header
        self.notices: list[str] = []
        self.path = model.with_suffix(".trace") if model.suffix == ".gguf" else model.with_name(model.name + ".trace")
        found = next((path for path in (self.path, model.with_name(model.name + ".trace")) if path.is_file()), None)
        self.trace: Trace | None = None
        self._before: Trace | None = None  # what grows
        self.ours = True  # the file is not somebody else's
        if given is not None:
            try:
                self.trace = self._ours(any_trace(given, header), given)
            except OSError as error:
                raise TraceError(f"{given}: {error.strerror}") from None
        if found is not None:
            try:
                self._before = self._ours(Trace.load(found, header.fingerprint), found)
            except (TraceError, OSError) as error:
                self.ours = found != self.path or isinstance(error, DamagedError)
                self.notices.append(f"{error}; it is not used")
        if given is None:
            self.trace = self._before

    def _ours(self, trace: Trace, path: Path) -> Trace:
        """The trace with this file's header, whose experts may have other sizes; raises TraceError."""
        header = self.header
        if (trace.header.n_layer, trace.header.n_expert) != (header.n_layer, header.n_expert):
            raise TraceError(f"{path}: a trace of another model ({trace.header.model})")
        dense = next((n for n in np.unique(trace.rows["layer"]).tolist() if not header.expert_bytes[n]), None)
        if dense is not None:
            raise TraceError(f"{path}: a trace of another model: in this one layer {dense} has no experts")
        return replace(trace, header=replace(header, tasks=trace.header.tasks))

    def hottest(self, n: int) -> list[ExpertId]:
        """The n experts asked for most often, those first."""
        if self.trace is None:
            return []
        count = counts(self.trace)
        best = np.argsort(-count, axis=None, kind="stable")[:n]
        return [ExpertId(*divmod(int(e), count.shape[1])) for e in best if count.flat[e] > 0]

    @cached_property
    def matrices(self) -> NDArray[np.uint16] | None:
        """What requests activated, for the predictors of MoE-Infinity."""
        return None if self.trace is None else of_trace(self.trace)

    def save(self, recorded: Trace) -> None:
        """Add what has run; where that cannot be written it is logged, and nothing else happens."""
        if not self.ours or not len(recorded):
            return
        if not os.access(self.path.parent, os.W_OK):
            logging.getLogger("gmoe").warning("%s cannot be written: what was learnt is forgotten", self.path)
            return
        stored = None if self._before is None else of_trace(self._before)
        collection = Collection((self.header.n_layer, self.header.n_expert), stored, MATRICES_KEPT)
        for matrix in of_trace(recorded):
            collection.add(matrix.astype(np.float32))
        both = recorded if self._before is None else joined(self._before, recorded)
        header = replace(self.header, tasks=both.header.tasks)
        both = replace(both, header=header, matrices=collection.matrices())
        try:
            both.save(self.path)
        except OSError as error:
            text = "%s cannot be written (%s): what was learnt is forgotten"
            logging.getLogger("gmoe").warning(text, self.path, error.strerror)


def joined(old: Trace, new: Trace) -> Trace:
    """Both, the last `ROWS_KEPT` rows, whole passes; requests and passes are numbered on from 0."""
    if not len(old) or old.ids.shape[1] != new.ids.shape[1]:
        return new
    rows = {name: np.concatenate([old.rows[name], new.rows[name]]) for name in ROWS}
    for name in ("step", "request"):
        numbers = [np.unique(trace.rows[name], return_inverse=True) for trace in (old, new)]
        behind = len(numbers[0][0])
        rows[name] = np.concatenate([numbers[0][1], numbers[1][1] + behind]).astype(ROWS[name])
    tasks = [trace.header.task(n) for trace, (its, _) in zip((old, new), numbers, strict=True) for n in its.tolist()]
    header = replace(new.header, tasks=tuple(tasks) if any(tasks) else ())
    both = Trace(header, rows, np.concatenate([old.ids, new.ids]), np.concatenate([old.weights, new.weights]))
    step = both.rows["step"]
    if len(both) <= ROWS_KEPT:
        return both
    return both.tail(len(np.unique(step[-ROWS_KEPT:])))
