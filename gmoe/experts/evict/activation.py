"""Activation-aware eviction (MoE-Infinity, arXiv 2401.14361): by what requests like this one activate.

Score: (foretold share of the layer's tokens + epsilon) * (1 - layer / layers): early layers, whose experts no prefetch
finds in time, are kept. Foretold are the recorded requests, each by its likeness to this pass (`scope`: or to this
request) when the layer last ran, and this request's own counts with the weight of `own` records just like it. The paper
has no such record (0).
"""

import numpy as np

from gmoe.experts.matrices import Collection
from gmoe.experts.policy import Floats, Ids, Probabilities, ScoredEviction, Shape


class Policy(ScoredEviction):
    def __init__(
        self, shape: Shape, matrices: Floats | None = None, epsilon: float = 1e-3, own: float = 1.0,
        capacity: int = 120, early: float = 1.0, scope: str = "iteration",
    ):  # fmt: skip
        super().__init__(shape)
        self.epsilon, self.own = epsilon, own
        self.collection = Collection(shape, matrices, capacity, scope)
        self.share = np.zeros(shape)
        self.early = 1 - early * np.arange(shape[0])[:, None] / shape[0]

    def begin(self) -> None:
        self.collection.begin()

    def learn(self, layer: int, ids: Ids, weights: Floats, probabilities: Probabilities) -> None:
        self.collection.observe(layer, ids)
        mine = self.collection.current[layer]
        alike = float(self.collection.likeness().sum())
        known = alike + self.own if self.collection.stored.size else self.own
        foretold = alike * self.collection.foretell(layer) + self.own * mine / max(float(mine.sum()), 1.0)
        self.share[layer] = foretold / max(known, 1e-9)

    def score(self) -> Floats:
        score: Floats = (self.share + self.epsilon) * self.early
        return score
