"""MoE-Infinity (arXiv 2401.14361): the recorded requests whose activation matrices are nearest foretell this one.

A matrix counts the tokens that each expert of each layer served in one request. A full collection gives up the
matrix most like the newcomer. Early layers weigh more: the next layer's experts are the most urgent.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from gmoe.experts.expert_id import ExpertId
from gmoe.experts.policy import Floats, Ids, Prefetcher, Shape, top


class Policy(Prefetcher):
    """`collection` [n, L, E] is what earlier runs left; it grows with every request."""

    def __init__(self, shape: Shape, collection: Floats | None = None, capacity: int = 120, ahead: int = 1):
        self.shape = shape
        self.capacity = capacity
        self.ahead = ahead
        self.collection: list[Floats] = [] if collection is None else list(collection[:capacity])
        self.current = np.zeros(shape)

    def begin(self) -> None:
        if self.current.any():
            if len(self.collection) >= self.capacity:
                self.collection.pop(int(self._likeness(self.shape[0]).argmax()))
            self.collection.append(self.current)
        self.current = np.zeros(self.shape)

    def predict(self, layer: int, hidden: Any, ids: Ids, weights: Floats) -> Iterable[ExpertId]:
        np.add.at(self.current[layer], ids.ravel(), 1)
        n_layers = self.shape[0]
        if self.collection and layer + 1 < n_layers:
            likeness = self._likeness(n_layers)
            for later in range(layer + 1, min(layer + 1 + self.ahead, n_layers)):
                foretold = sum(w * m[later] for w, m in zip(likeness, self.collection, strict=True))
                yield from top(np.asarray(foretold), later, ids.shape[1])

    def _likeness(self, n_layers: int) -> Floats:
        """[n], cosine of this request's matrix so far with each recorded one, over the first layers."""
        now = self.current[:n_layers].ravel()
        past = np.stack([m[:n_layers].ravel() for m in self.collection])
        likeness: Floats = past @ now / (np.linalg.norm(past, axis=1) * np.linalg.norm(now) + 1e-9)
        return likeness
