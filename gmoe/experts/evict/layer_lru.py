"""LRU that spares the next layers: the expert unused for longest leaves of those whose layers come later.

After the observation in MoE-Infinity (arXiv 2401.14361) and HOBBIT (2411.01433) that layers run in a known order.
"""

import numpy as np

from gmoe.experts.policy import Floats, Ids, Probabilities, ScoredEviction, Shape


class Policy(ScoredEviction):
    def __init__(self, shape: Shape, spare: int = 4):
        super().__init__(shape)
        self.spare = spare
        self.layer = 0

    def learn(self, layer: int, ids: Ids, weights: Floats, probabilities: Probabilities) -> None:
        self.layer = layer

    def score(self) -> Floats:
        n_layers = len(self.used)
        ahead = (np.arange(n_layers) - self.layer) % n_layers  # [L]
        return np.where(ahead <= self.spare, self.clock, 0)[:, None] + self.used
