"""FineMoE (arXiv 2502.05370): the nearest stored probability map, by embedding first, then by the layers seen so far.

Until `distance` layers of a step have run, the map is chosen by the likeness of the input; where no hidden state is
known, as in a replay, by the previous step's map. A full store gives up the map most like the newcomer.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from gmoe.experts.expert_id import ExpertId
from gmoe.experts.policy import Floats, Ids, Prefetcher, Shape


class Policy(Prefetcher):
    def __init__(self, shape: Shape, capacity: int = 256, distance: int = 3):
        self.shape = shape
        self.capacity = capacity
        self.distance = distance
        self.maps = np.zeros((0, *shape), dtype=np.float32)
        self.embeddings: list[Floats] = []
        self.current = np.zeros(shape, dtype=np.float32)
        self.embedding: Floats = np.zeros(0)
        self.layer = -1

    def begin(self) -> None:
        self._keep()

    def predict(self, layer: int, hidden: Any, ids: Ids, weights: Floats) -> Iterable[ExpertId]:
        if layer <= self.layer:
            self._keep()
        if self.layer < 0:
            last = self.current if not len(self.maps) else self.maps[-1]
            self.embedding = last.ravel() if hidden is None else np.asarray(hidden).mean(axis=0)
        self.layer = layer
        np.add.at(self.current[layer], ids.ravel(), weights.ravel() / len(ids))
        later = layer + 1
        if later == self.shape[0] or not len(self.maps):
            return []
        if layer < self.distance:
            past = np.stack([e if e.shape == self.embedding.shape else 0 * self.embedding for e in self.embeddings])
            likeness = _cosine(past, self.embedding)
        else:
            likeness = _cosine(self.maps[:, :later].reshape(len(self.maps), -1), self.current[:later].ravel())
        nearest = int(likeness.argmax())
        return self._choose(self.maps[nearest, later], float(likeness[nearest]), later, ids.shape[1])

    def _choose(self, chance: Floats, likeness: float, layer: int, k: int) -> list[ExpertId]:
        """k experts at least, and the less alike the map, the more: until they hold 1 - likeness of its mass."""
        order = np.argsort(-chance, kind="stable")
        mass = np.cumsum(chance[order]) / max(float(chance.sum()), 1e-9)
        n = max(k, int(np.count_nonzero(mass <= np.clip(1 - likeness, 0, 1))))
        return [ExpertId(layer, int(e)) for e in order[:n] if chance[e] > 0]

    def _keep(self) -> None:
        if self.layer >= 0:
            if len(self.maps) == self.capacity:
                alike = int(_cosine(self.maps.reshape(self.capacity, -1), self.current.ravel()).argmax())
                self.maps = np.delete(self.maps, alike, axis=0)
                self.embeddings.pop(alike)
            self.maps = np.concatenate([self.maps, self.current[None]])
            self.embeddings.append(self.embedding)
        self.current = np.zeros(self.shape, dtype=np.float32)
        self.layer = -1


def _cosine(past: Floats, now: Floats) -> Floats:
    likeness: Floats = past @ now / (np.linalg.norm(past, axis=1) * np.linalg.norm(now) + 1e-9)
    return likeness
