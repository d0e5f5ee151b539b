"""Recorder: appends routing events as a model runs, into arrays that become a `Trace`."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gmoe.experts.trace import EXTRAS, ROWS, Header, Trace

Array = NDArray[Any]
FIRST = 1024  # rows there is room for at first
SLACK = 1.25  # of the limit, when the oldest passes are forgotten


class Recorder:
    """One `begin_step` a forward pass, then one `record` a routed layer; it costs a copy of ids and weights.

    A pass whose layers come again runs again: what it recorded before is dropped. With `limit`, the oldest passes are
    forgotten when there are more rows than that, a few passes at a time.
    """

    def __init__(self, header: Header, limit: int = 0):
        self.header = header
        self.limit = limit
        self.rows = 0
        self._step = -1
        self._begin, self._last = 0, -1  # the row with which the pass began, and the layer recorded last
        self._now: tuple[Array, ...] = ()
        self._columns: dict[str, Array] = {}  # room for more than `rows`
        self._scored = True  # every row so far came with scores

    def begin_step(self, request: Array, phase: Array, position: Array) -> None:
        """The rows of the pass that starts: request, phase and position [T]."""
        self._step += 1
        self._now = request, phase, position
        if self.limit and self.rows > SLACK * self.limit:
            self._forget()
        self._begin, self._last = self.rows, -1

    def record(self, layer: int, ids: Array, weights: Array, scores: Array | None = None) -> None:
        """ids and weights [t, k] of the last t rows of the pass; copied, since buffers are reused.

        `scores` [t, E], the router's own, are kept only where every layer gives them.
        """
        n, at = len(ids), self.rows if layer > self._last else self._begin
        self._last = layer
        if not self._columns:
            self._columns = self._room(ids.shape[1], scores is not None)
        while at + n > len(self._columns["ids"]):
            self._grow()
        columns, here = self._columns, slice(at, at + n)
        columns["step"][here], columns["layer"][here] = self._step, layer
        request, phase, position = self._now
        columns["request"][here], columns["phase"][here] = request[-n:], phase[-n:]
        columns["position"][here] = position[-n:]
        columns["ids"][here], columns["weights"][here] = ids, weights
        if scores is None:
            self._scored = False
            columns.pop("scores", None)
        elif self._scored:
            columns["scores"][here] = scores
        self.rows = at + n

    def trace(self) -> Trace:
        """What has been recorded so far."""
        columns = self._columns or self._room(0, False)
        taken = {name: column[: self.rows].copy() for name, column in columns.items()}
        rows = {name: taken[name] for name in ROWS}
        return Trace(self.header, rows, taken["ids"], taken["weights"].astype(np.float32), taken.get("scores"))

    def _room(self, k: int, scored: bool) -> dict[str, Array]:
        kinds: dict[str, Any] = {name: ((), kind) for name, kind in ROWS.items()}
        kinds |= {"ids": ((k,), np.int16), "weights": ((k,), np.float16)}
        if scored:
            kinds["scores"] = (self.header.n_expert,), EXTRAS["scores"]
        return {name: np.empty((FIRST, *shape), kind) for name, (shape, kind) in kinds.items()}

    def _grow(self) -> None:
        """Twice the room."""
        for name, column in self._columns.items():
            self._columns[name] = np.empty_like(column, shape=(2 * len(column), *column.shape[1:]))
            self._columns[name][: self.rows] = column[: self.rows]

    def _forget(self) -> None:
        """Drop whole passes from the front while `limit` rows are left: one of more rows stays until others are."""
        step = self._columns["step"][: self.rows]
        cut = int(np.searchsorted(step, step[self.rows - self.limit]))
        if not cut:
            return
        left = self.rows - cut
        for column in self._columns.values():
            column[:left] = column[cut : self.rows].copy()
        self.rows = left
