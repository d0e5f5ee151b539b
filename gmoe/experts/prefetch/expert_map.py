"""FineMoE (arXiv 2502.05370): the nearest stored map of a pass, by its input first, then by the layers seen so far.

A map holds the router's probabilities of all experts; where a trace holds none, the chosen ones' weights. As a pass
begins, the map with the nearest input foretells the next `distance` layers. After layer l the map nearest over the
layers up to l foretells layer l + distance, each layer once. The input is what the first router saw, for the paper's
embedding of the token; a replay, which does not know it, takes the pass before. A full store (the paper's holds 1000)
gives up the map most like the newcomer, input and layers weighed as the paper does.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from gmoe.experts.expert_id import ExpertId
from gmoe.experts.policy import Floats, Ids, Prefetcher, Probabilities, Shape, likelihood, within


class Policy(Prefetcher):
    """Most urgent is the highest probability * (1 - layers to go / all layers)."""

    def __init__(self, shape: Shape, capacity: int = 256, distance: int = 3):
        self.shape = shape
        self.capacity = int(within("capacity", capacity, 1, 1e6))
        self.distance = int(within("distance", distance, 1, 4096))
        self.stored = 0  # maps; the arrays have room for more
        self.maps: Floats = np.zeros((0, *shape), np.float32)
        self.squares: Floats = np.zeros((0, shape[0]))  # of a map, summed up to each layer
        self.inputs: Floats = np.zeros((0, 0), np.float32)
        self.current = np.zeros(shape, np.float32)
        self.last = np.zeros(shape[0] * shape[1], np.float32)
        self.input: Floats = np.zeros(0)
        self.dots: Floats = np.zeros(0)
        self.layer = -1

    def begin(self) -> None:
        self._keep()

    def predict(
        self, layer: int, hidden: Any, ids: Ids, weights: Floats, probabilities: Probabilities
    ) -> Iterable[ExpertId]:
        first = self.layer < 0 or layer <= self.layer
        if first:
            self._keep()
            self.input = self.last if hidden is None else np.asarray(hidden, np.float32).mean(axis=0)
            self.dots = np.zeros(self.stored)
        self.layer, (n_layers, n_expert) = layer, self.shape
        self.current[layer] = likelihood(n_expert, ids, weights, probabilities)
        if not self.stored:
            return ()
        self.dots += self.maps[: self.stored, layer] @ self.current[layer]
        end = min(layer + 1 + self.distance, n_layers)
        if first:
            likeness, foretold = _cosine(self.inputs[: self.stored], self.input), range(layer + 1, end)
        else:
            likeness = self.dots / (np.sqrt(self.squares[: self.stored, layer] * np.square(self.current).sum()) + 1e-9)
            foretold = range(layer + self.distance, end)
        nearest, k = int(likeness.argmax()), ids.shape[1]
        found: list[tuple[float, ExpertId]] = []
        for later in foretold:
            chances, decay = self.maps[nearest, later], 1 - (later - layer) / n_layers
            found += [(chances[e] * decay, ExpertId(later, e)) for e in _choose(chances, likeness[nearest], k)]
        return [id for _, id in sorted(found, key=lambda urgent: -urgent[0])]

    def _keep(self) -> None:
        """Store the pass that has ended."""
        if self.layer < 0:
            return
        if self.inputs.shape[1] != len(self.input):
            self.inputs = np.zeros((len(self.maps), len(self.input)), np.float32)
        if self.stored == self.capacity:
            early, layers = self.distance / self.shape[0], _cosine(self.maps.reshape(len(self.maps), -1), self.current)
            at = int((early * _cosine(self.inputs, self.input) + (1 - early) * layers).argmax())
        else:
            at = self.stored
            self.stored += 1
            if at == len(self.maps):
                more = max(1, min(at, self.capacity - at))
                self.maps, self.squares, self.inputs = (_grown(a, more) for a in (self.maps, self.squares, self.inputs))
        self.maps[at], self.inputs[at] = self.current, self.input
        self.squares[at] = np.cumsum(np.square(self.current).sum(axis=1))
        self.last = self.current.ravel()
        self.current = np.zeros(self.shape, np.float32)
        self.layer = -1


def _choose(chances: Floats, likeness: float, k: int) -> list[int]:
    """k experts at least, and the less alike the map, the more: while they hold 1 - likeness of its mass or less."""
    order = np.argsort(-chances, kind="stable")
    mass = np.cumsum(chances[order]) / max(float(chances.sum()), 1e-9)
    n = max(k, int(np.count_nonzero(mass <= np.clip(1 - likeness, 0, 1))))
    return [e for e in order[:n].tolist() if chances[e] > 0]


def _cosine(past: Floats, now: Floats) -> Floats:
    return np.asarray(past @ now.ravel() / (np.linalg.norm(past, axis=1) * np.linalg.norm(now) + 1e-9))


def _grown(rows: Floats, more: int) -> Floats:
    return np.concatenate([rows, np.zeros((more, *rows.shape[1:]), rows.dtype)])
