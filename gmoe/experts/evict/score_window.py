"""SMoE's eviction (arXiv 2508.18983): the lowest mean score over the last `window` runs of its layer leaves."""

import numpy as np

from gmoe.experts.policy import Floats, Ids, ScoredEviction, Shape, within


class Policy(ScoredEviction):
    def __init__(self, shape: Shape, window: int = 32):
        super().__init__(shape)
        self.history = np.zeros((int(within("window", window, 1, 4096)), *shape))
        self.sum = np.zeros(shape)
        self.runs = np.zeros(shape[0], dtype=int)

    def learn(self, layer: int, ids: Ids, weights: Floats) -> None:
        row = self.history[self.runs[layer] % len(self.history), layer]
        self.sum[layer] -= row
        row[:] = 0
        np.add.at(row, ids.ravel(), weights.ravel() / len(ids))
        self.sum[layer] += row
        self.runs[layer] += 1

    def score(self) -> Floats:
        return self.sum.round(9)
