"""FineMoE's eviction (arXiv 2502.05370): probability times uses while in the cache; the lowest leaves.

The probability is the routing weight of recent tokens, `memory` of it kept from token to token.
"""

import numpy as np

from gmoe.experts.expert_id import ExpertId
from gmoe.experts.policy import Floats, Ids, ScoredEviction, Shape, within


class Policy(ScoredEviction):
    def __init__(self, shape: Shape, memory: float = 0.9):
        super().__init__(shape)
        self.memory = within("memory", memory, 0, 1)
        self.probability = np.full(shape, 1 / shape[1])
        self.visits = np.zeros(shape)

    def learn(self, layer: int, ids: Ids, weights: Floats) -> None:
        self.probability[layer] *= self.memory
        np.add.at(self.probability[layer], ids.ravel(), (1 - self.memory) * weights.ravel() / len(ids))

    def touch(self, id: ExpertId) -> None:
        super().touch(id)
        self.visits[id] += 1

    def remove(self, id: ExpertId) -> None:
        super().remove(id)
        self.visits[id] = 0

    def score(self) -> Floats:
        return self.probability * self.visits
