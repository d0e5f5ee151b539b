"""LFU: the least used expert leaves; uses are remembered after it left, and halved every `aging` uses."""

import numpy as np

from gmoe.experts.expert_id import ExpertId
from gmoe.experts.policy import Floats, ScoredEviction, Shape, within


class Policy(ScoredEviction):
    def __init__(self, shape: Shape, aging: int = 1_000_000):
        super().__init__(shape)
        self.aging = within("aging", aging, 1, 1e9)
        self.count = np.zeros(shape)

    def touch(self, id: ExpertId) -> None:
        super().touch(id)
        self.count[id] += 1
        if self.clock % self.aging == 0:
            self.count /= 2

    def score(self) -> Floats:
        return self.count
