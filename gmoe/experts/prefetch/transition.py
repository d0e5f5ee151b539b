"""Layer-to-layer co-activation: which experts followed these in the next layer, counted as they run."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from gmoe.experts.expert_id import ExpertId
from gmoe.experts.policy import Floats, Ids, Prefetcher, Probabilities, Shape, top, within


class Policy(Prefetcher):
    def __init__(self, shape: Shape, smoothing: float = 1.0):
        n_layers, n_experts = shape
        self.smoothing = within("smoothing", smoothing, 1e-6, 1e9)
        self.count = np.zeros((n_layers, n_experts, n_experts), dtype=np.float32)  # [of, from, to]: into layer `of`
        self.seen = np.zeros(shape, dtype=np.float32)
        self.before: tuple[int, Ids] | None = None

    def begin(self) -> None:
        self.before = None

    def predict(
        self, layer: int, hidden: Any, ids: Ids, weights: Floats, probabilities: Probabilities
    ) -> Iterable[ExpertId]:
        if self.before and self.before[0] < layer:
            came = self.before[1]
            for token in range(1, min(len(ids), len(came)) + 1):  # the last rows are the same tokens
                self.count[layer][np.ix_(came[-token], ids[-token])] += 1
        self.before = layer, ids
        np.add.at(self.seen[layer], ids.ravel(), 1)
        later = layer + 1
        if later == len(self.seen):
            return ()
        from_here = self.count[later][np.unique(ids)]  # [U, E]
        chance = from_here / (from_here.sum(axis=1, keepdims=True) + self.smoothing)
        return top(chance.sum(axis=0), later, ids.shape[1])
