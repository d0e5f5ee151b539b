"""FineMoE's eviction (arXiv 2502.05370): probability times uses while in the cache; the lowest leaves.

The paper takes the probability from the stored map that its prefetcher found. Eviction needs no prefetcher here: it is
what the router thought of recent tokens, `memory` of it kept from run to run. It thought something of all experts;
where a trace does not hold that, the chosen ones' weights stand for it.
"""

import numpy as np

from gmoe.experts.expert_id import ExpertId
from gmoe.experts.policy import Floats, Ids, Probabilities, ScoredEviction, Shape, likelihood, within


class Policy(ScoredEviction):
    def __init__(self, shape: Shape, memory: float = 0.9):
        super().__init__(shape)
        self.shape = shape
        self.memory = within("memory", memory, 0, 1)
        self.probability = np.full(shape, 1 / shape[1])
        self.visits = np.zeros(shape)

    def learn(self, layer: int, ids: Ids, weights: Floats, probabilities: Probabilities) -> None:
        self.probability[layer] *= self.memory
        self.probability[layer] += (1 - self.memory) * likelihood(self.shape[1], ids, weights, probabilities)

    def touch(self, id: ExpertId) -> None:
        super().touch(id)
        self.visits[id] += 1

    def remove(self, id: ExpertId) -> None:
        super().remove(id)
        self.visits[id] = 0

    def score(self) -> Floats:
        return self.probability * self.visits
