"""Recorder: appends routing events as a model runs, into arrays that become a `Trace`."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gmoe.experts.trace import ROWS, Header, Trace

Array = NDArray[Any]


class Recorder:
    """One `begin_step` a forward pass, then one `record` a routed layer; it costs a copy of ids and weights.

    With `limit`, the oldest passes are forgotten when there are more rows than that, a few passes at a time.
    """

    def __init__(self, header: Header, limit: int = 0):
        self.header = header
        self.limit = limit
        self.rows = 0
        self._step = -1
        self._now: tuple[Array, ...] = ()
        self._events: list[tuple[int, int, tuple[Array, ...], Array, Array]] = []
        self._scores: list[Array] = []

    def begin_step(self, request: Array, phase: Array, position: Array) -> None:
        """The rows of the pass that starts: request, phase and position [T]."""
        self._step += 1
        self._now = request, phase, position
        if self.limit and self.rows > 1.25 * self.limit:
            self._forget()

    def record(self, layer: int, ids: Array, weights: Array, scores: Array | None = None) -> None:
        """ids and weights [t, k] of the last t rows of the pass; copied, since buffers are reused.

        `scores` [t, E], the router's own, are kept only where every layer gives them.
        """
        self._events.append((self._step, layer, self._now, ids.astype(np.int16), weights.astype(np.float16)))
        self.rows += len(ids)
        if scores is not None:
            self._scores.append(scores.astype(np.float16))

    def trace(self) -> Trace:
        """What has been recorded so far."""
        events = self._events
        lengths = [len(event[3]) for event in events]
        columns: dict[str, Array] = {
            "step": np.repeat(np.array([event[0] for event in events], dtype=np.int32), lengths),
            "layer": np.repeat(np.array([event[1] for event in events], dtype=np.int16), lengths),
        }
        for n, name in enumerate(("request", "phase", "position")):
            parts = [event[2][n][-len(event[3]) :] for event in events]
            columns[name] = np.concatenate(parts).astype(ROWS[name]) if parts else np.zeros(0, ROWS[name])
        ids = [event[3] for event in events] or [np.zeros((0, 0), np.int16)]
        weights = [event[4] for event in events] or [np.zeros((0, 0), np.float16)]
        scores = np.concatenate(self._scores) if events and len(self._scores) == len(events) else None
        return Trace(self.header, columns, np.concatenate(ids), np.concatenate(weights).astype(np.float32), scores)

    def _forget(self) -> None:
        """Drop whole passes from the front until `limit` rows are left."""
        drop, left = 0, self.rows
        while left > self.limit:
            left -= len(self._events[drop][3])
            drop += 1
        while drop < len(self._events) and self._events[drop][0] == self._events[drop - 1][0]:
            left -= len(self._events[drop][3])
            drop += 1
        if len(self._scores) == len(self._events):
            del self._scores[:drop]
        del self._events[:drop]
        self.rows = left
