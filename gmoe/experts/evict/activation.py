"""Activation-aware eviction (MoE-Infinity, arXiv 2401.14361): the request's own counts, and early layers kept.

Score: (share of the layer's tokens in this request + epsilon) * (1 - layer / layers).
"""

import numpy as np

from gmoe.experts.policy import Floats, Ids, ScoredEviction, Shape


class Policy(ScoredEviction):
    def __init__(self, shape: Shape, epsilon: float = 1e-3):
        super().__init__(shape)
        self.epsilon = epsilon
        self.count = np.zeros(shape)
        self.total = np.ones((shape[0], 1))
        self.early = 1 - np.arange(shape[0])[:, None] / shape[0]

    def begin(self) -> None:
        self.count[:] = 0
        self.total[:] = 1

    def observe(self, layer: int, ids: Ids, weights: Floats) -> None:
        np.add.at(self.count[layer], ids.ravel(), 1)
        self.total[layer] += ids.size

    def score(self) -> Floats:
        share: Floats = (self.count / self.total + self.epsilon) * self.early
        return share
