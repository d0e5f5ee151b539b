"""SMoE's eviction (arXiv 2508.18983): the lowest mean score over the last `window` runs of its layer leaves.

The scores are the router's probabilities of all experts, chosen or not; where a trace holds none, the chosen ones'
weights. A run of several tokens counts as their mean. How long the window is the paper does not print.
"""

import numpy as np

from gmoe.experts.policy import Floats, Ids, Probabilities, ScoredEviction, Shape, likelihood, within


class Policy(ScoredEviction):
    def __init__(self, shape: Shape, window: int = 32):
        super().__init__(shape)
        self.history = np.zeros((int(within("window", window, 1, 4096)), *shape))
        self.sum = np.zeros(shape)
        self.runs = np.zeros(shape[0], dtype=int)

    def learn(self, layer: int, ids: Ids, weights: Floats, probabilities: Probabilities) -> None:
        row = self.history[self.runs[layer] % len(self.history), layer]
        self.sum[layer] -= row
        row[:] = likelihood(len(row), ids, weights, probabilities)
        self.sum[layer] += row
        self.runs[layer] += 1

    def score(self) -> Floats:
        runs = np.clip(self.runs, 1, len(self.history))[:, None]  # that the window holds so far
        mean: Floats = (self.sum / runs).round(9)
        return mean
