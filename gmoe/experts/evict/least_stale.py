"""Least-Stale (SpecMD, arXiv 2602.03921): experts not asked for since the layer last ran go first.

Stale is an expert that its own layer passed over the last time; among the stale the one whose layer runs again last
leaves, and only then those still fresh.
"""

import numpy as np

from gmoe.experts.policy import Floats, Ids, Probabilities, ScoredEviction, Shape


class Policy(ScoredEviction):
    def __init__(self, shape: Shape):
        super().__init__(shape)
        self.layer = 0
        self.passed_over = np.zeros(shape)  # times in a row

    def learn(self, layer: int, ids: Ids, weights: Floats, probabilities: Probabilities) -> None:
        self.layer = layer
        self.passed_over[layer] += 1
        self.passed_over[layer, ids.ravel()] = 0

    def score(self) -> Floats:
        n_layers = len(self.passed_over)
        ahead = ((np.arange(n_layers) - self.layer - 1) % n_layers) / n_layers  # [L], in 0..1
        return -self.passed_over - ahead[:, None]
