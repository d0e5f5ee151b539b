"""FineMoE (arXiv 2502.05370): the nearest stored map of a pass, by its input first, then by the layers seen so far.

A pass begins: the map whose input is nearest foretells the next `distance` layers. After layer l: the map nearest over
the layers up to l foretells layer l + distance. The paper's maps hold the router's probabilities of all experts; these
hold the chosen ones' weights. Where no hidden state is known, as in a replay, the pass before stands for the input.
A full store gives up the map most like the newcomer, input and layers weighed as the paper does.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from gmoe.experts.expert_id import ExpertId
from gmoe.experts.policy import Floats, Ids, Prefetcher, Shape, within


class Policy(Prefetcher):
    def __init__(self, shape: Shape, capacity: int = 256, distance: int = 3):
        self.shape = shape
        self.capacity = int(within("capacity", capacity, 1, 1e6))
        self.distance = int(within("distance", distance, 1, 4096))
        self.maps = np.zeros((0, *shape), np.float32)
        self.squares = np.zeros((0, shape[0]))  # of a map, summed up to each layer
        self.inputs = np.zeros((0, 0), np.float32)
        self.current = np.zeros(shape, np.float32)
        self.last = np.zeros(shape[0] * shape[1], np.float32)
        self.input: Floats = np.zeros(0)
        self.dots = np.zeros(0)
        self.layer = -1

    def begin(self) -> None:
        self._keep()

    def predict(self, layer: int, hidden: Any, ids: Ids, weights: Floats) -> Iterable[ExpertId]:
        first = self.layer < 0 or layer <= self.layer
        if first:
            self._keep()
            self.input = self.last if hidden is None else np.asarray(hidden, np.float32).mean(axis=0)
            self.dots = np.zeros(len(self.maps))
        self.layer = layer
        experts, at = np.unique(ids, return_inverse=True)
        chance = np.bincount(at.ravel(), weights.ravel() / len(ids)).astype(np.float32)
        self.current[layer, experts] = chance
        if not len(self.maps):
            return []
        self.dots += self.maps[:, layer, experts] @ chance
        if first:
            likeness = _cosine(self.inputs, self.input)
            foretold = range(layer + 1, min(layer + 1 + self.distance, self.shape[0]))
        else:
            own = float(np.square(self.current).sum()) ** 0.5
            likeness = self.dots / (np.sqrt(self.squares[:, layer]) * own + 1e-9)
            foretold = range(layer + self.distance, min(layer + self.distance + 1, self.shape[0]))
        nearest = int(likeness.argmax())
        return [
            id
            for later in foretold
            for id in self._choose(self.maps[nearest, later], float(likeness[nearest]), later, ids.shape[1])
        ]

    def _choose(self, chance: Floats, likeness: float, layer: int, k: int) -> list[ExpertId]:
        """k experts at least, and the less alike the map, the more: until they hold 1 - likeness of its mass."""
        order = np.argsort(-chance, kind="stable")
        mass = np.cumsum(chance[order]) / max(float(chance.sum()), 1e-9)
        n = max(k, int(np.count_nonzero(mass <= np.clip(1 - likeness, 0, 1))))
        return [ExpertId(layer, int(e)) for e in order[:n] if chance[e] > 0]

    def _keep(self) -> None:
        """Store the pass that has ended."""
        if self.layer < 0:
            return
        if self.inputs.shape[1] != len(self.input):
            self.inputs = np.zeros((len(self.maps), len(self.input)), np.float32)
        if len(self.maps) == self.capacity:
            early = self.distance / self.shape[0]
            flat = self.maps.reshape(self.capacity, -1)
            alike = early * _cosine(self.inputs, self.input) + (1 - early) * _cosine(flat, self.current.ravel())
            at = int(alike.argmax())
        else:
            at = len(self.maps)
            self.maps = np.concatenate([self.maps, self.current[None]])
            self.squares = np.concatenate([self.squares, np.zeros((1, self.shape[0]))])
            self.inputs = np.concatenate([self.inputs, self.input[None]])
        self.maps[at], self.inputs[at] = self.current, self.input
        self.squares[at] = np.cumsum(np.square(self.current).sum(axis=1))
        self.last = self.current.ravel()
        self.current = np.zeros(self.shape, np.float32)
        self.layer = -1


def _cosine(past: Floats, now: Floats) -> Floats:
    likeness: Floats = past @ now / (np.linalg.norm(past, axis=1) * np.linalg.norm(now) + 1e-9)
    return likeness
