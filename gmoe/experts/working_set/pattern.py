"""PreMoe (arXiv 2505.17639): the stored pattern nearest to this request's first layer says which experts it needs.

A pattern is the mean routing weight of every expert over a request; its key is the row of the first layer. Every layer
keeps as many of its experts. The paper takes means of logits, of each token's best experts, over the texts of a task,
and of the other layers their order only; a trace holds weights, and requests stand for tasks.
"""

from collections.abc import Sequence

import numpy as np

from gmoe.experts.expert_id import ExpertId
from gmoe.experts.policy import Floats, Ids, Probabilities, Shape, WorkingSet, evenly, within


class Policy(WorkingSet):
    def __init__(self, shape: Shape, capacity: int = 64):
        self.shape = shape
        self.capacity = int(within("capacity", capacity, 1, 1e6))
        self.patterns: list[Floats] = []
        self.current = np.zeros(shape)
        self.tokens = np.zeros((shape[0], 1))

    def begin(self, task: str = "") -> None:
        if self.current.any():
            self.patterns.append(self.current / np.maximum(self.tokens, 1))
            del self.patterns[: -self.capacity]
        self.current = np.zeros(self.shape)
        self.tokens = np.zeros((self.shape[0], 1))

    def observe(self, layer: int, ids: Ids, weights: Floats, probabilities: Probabilities) -> None:
        np.add.at(self.current[layer], ids.ravel(), weights.ravel())
        self.tokens[layer] += len(ids)

    def plan(self, slots: int) -> Sequence[ExpertId]:
        routed = np.flatnonzero(self.tokens.ravel())
        if not self.patterns or not len(routed):
            return []
        first = routed[0]
        key = self.current[first] / self.tokens[first]
        pattern = min(self.patterns, key=lambda stored: float(np.linalg.norm(stored[first] - key)))
        return evenly(pattern, slots)
