"""MoE-Infinity's collection (arXiv 2401.14361): what requests activated, matched against what this one does.

A matrix counts the tokens that each expert of each layer served; prompts and answers have one each. A full collection
gives up the matrix most like the newcomer. Likeness is the cosine, kept up to date at a few additions a layer.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gmoe.experts.policy import Floats, Ids, PolicyError, Shape, within
from gmoe.experts.trace import Trace

MOST = np.iinfo(np.uint16).max


class Collection:
    """At most `capacity` matrices; `scope` says what is matched: the "request" so far, or the "iteration" (pass)."""

    def __init__(self, shape: Shape, stored: NDArray[Any] | None = None, capacity: int = 120, scope: str = "request"):
        if scope not in ("request", "iteration"):
            raise PolicyError(f"scope is {scope!r}; it must be request or iteration")
        self.shape, self.capacity, self.scope = shape, int(within("capacity", capacity, 1, 4096)), scope
        self.stored = np.zeros((0, *shape), np.float32)
        self.current = np.zeros(shape, np.float32)
        self._matched = np.zeros(shape, np.float32)
        self._norms, self._dots, self._square = np.zeros(0), np.zeros(0), 0.0
        self._layer, self._rows = shape[0], 0
        for matrix in stored[-capacity:] if stored is not None else ():
            self.add(np.asarray(matrix, np.float32))

    def begin(self) -> None:
        """A new request starts, or its answer: what ran so far is kept."""
        if self.current.any():
            self.add(self.current)
        self.current = np.zeros(self.shape, np.float32)
        self._forget()

    def observe(self, layer: int, ids: Ids) -> None:
        """A layer's choice, ids [T, k]."""
        if layer <= self._layer:  # a new pass
            if self._rows > 1 and len(ids) == 1:
                self.begin()
            elif self.scope == "iteration":
                self._forget()
        self._layer, self._rows = layer, len(ids)
        experts, times = np.unique(ids, return_counts=True)
        self.current[layer, experts] += times
        before = self._matched[layer, experts]
        self._matched[layer, experts] += times
        self._square += float((times * (2 * before + times)).sum())
        if len(self.stored):
            self._dots += self.stored[:, layer, experts] @ times

    def likeness(self) -> Floats:
        """[n], of each stored matrix to what has run."""
        cosine: Floats = self._dots / (self._norms * self._square**0.5 + 1e-9)
        return cosine

    def foretell(self, layer: int) -> Floats:
        """[E], the likely share of each expert of a layer in what is to come; zeros where nothing is known."""
        if not len(self.stored):
            return np.zeros(self.shape[1])
        row: Floats = self.likeness() @ self.stored[:, layer]
        return row / max(float(row.sum()), 1e-9)

    def matrices(self) -> NDArray[np.uint16]:
        """All of them, the current one too, as a trace keeps them."""
        now = [self.current] if self.current.any() else []
        every = np.concatenate([self.stored, np.array(now, np.float32).reshape(-1, *self.shape)])
        return np.minimum(every[-self.capacity :], MOST).astype(np.uint16)

    def add(self, matrix: Floats) -> None:
        """Store one [L, E]."""
        norm = float(np.linalg.norm(matrix))
        if len(self.stored) >= self.capacity:
            alike = int((self.stored.reshape(len(self.stored), -1) @ matrix.ravel() / self._norms).argmax())
            self.stored = np.delete(self.stored, alike, axis=0)
            self._norms = np.delete(self._norms, alike)
            self._dots = np.delete(self._dots, alike)
        self.stored = np.concatenate([self.stored, matrix[None].astype(np.float32)])
        self._norms = np.append(self._norms, max(norm, 1e-9))
        self._dots = np.append(self._dots, float((matrix * self._matched).sum()))

    def _forget(self) -> None:
        """Match from here on."""
        self._matched[:] = 0
        self._dots = np.zeros(len(self.stored))
        self._square = 0.0


def of_trace(trace: Trace) -> NDArray[np.uint16]:
    """The matrices a trace holds; where it holds none, those of its rows: one a request and phase, in order."""
    if trace.matrices is not None:
        return trace.matrices
    h, rows = trace.header, trace.rows
    key = rows["request"].astype(np.int64) * 2 + rows["phase"]
    found = []
    for name in dict.fromkeys(key.tolist()):
        mine = key == name
        flat = (rows["layer"][mine].astype(np.int64)[:, None] * h.n_expert + trace.ids[mine]).ravel()
        count = np.bincount(flat, minlength=h.n_layer * h.n_expert)
        found.append(np.minimum(count, MOST).astype(np.uint16).reshape(h.n_layer, h.n_expert))
    return np.array(found, np.uint16).reshape(-1, h.n_layer, h.n_expert)
