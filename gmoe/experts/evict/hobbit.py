"""HOBBIT's four terms (arXiv 2411.01433): recency, uses, heavy uses and the distance to its layer, weighted.

The paper fits the weights to a calibration set and does not print them; these are equal. A heavy use is one that
HOBBIT would serve in high precision: the weights before it in its token sum to `heavy` or less. As in the paper twins
have slots of their own; who leaves those is the least recently used.
"""

import numpy as np

from gmoe.experts.policy import Floats, Ids, Probabilities, ScoredEviction, Shape


class Policy(ScoredEviction):
    def __init__(
        self, shape: Shape, lru: float = 0.25, lfu: float = 0.25, lhu: float = 0.25, fld: float = 0.25,
        heavy: float = 0.6,
    ):  # fmt: skip
        super().__init__(shape)
        self.terms = lru, lfu, lhu, fld
        self.heavy = heavy
        self.last, self.uses, self.heavy_uses = (np.zeros(shape) for _ in range(3))
        self.tokens = np.zeros(shape[0])
        self.layer = 0

    def begin(self) -> None:
        for record in (self.last, self.uses, self.heavy_uses, self.tokens):
            record[:] = 0

    def learn(self, layer: int, ids: Ids, weights: Floats, probabilities: Probabilities) -> None:
        self.layer = layer
        self.tokens[layer] += len(ids)
        share = -np.sort(-weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-9), axis=1)
        order = np.argsort(-weights, axis=1, kind="stable")
        before = np.cumsum(share, axis=1) - share  # [T, k]
        ranked = np.take_along_axis(ids, order, axis=1)
        np.add.at(self.uses[layer], ids.ravel(), 1)
        np.add.at(self.heavy_uses[layer], ranked[before <= self.heavy], 1)
        self.last[layer, ids] = self.tokens[layer] - np.arange(len(ids))[::-1, None]  # of several the last one counts

    def score(self) -> Floats:
        n_layers = len(self.tokens)
        lru, lfu, lhu, fld = self.terms
        near = 1 - ((np.arange(n_layers) - self.layer) % n_layers)[:, None] / n_layers
        past = lru * self.last + lfu * self.uses + lhu * self.heavy_uses
        score: Floats = past / max(self.tokens.max(), 1) + fld * near
        return score
