"""A control: absent experts are left out by chance, whatever their weight."""

import random

from gmoe.experts.expert_id import Action, Miss, Residency
from gmoe.experts.policy import MissPolicy, within


class Policy(MissPolicy):
    """Each with probability `part`; 0: exact, 1: whatever is absent."""

    def __init__(self, part: float = 0.3):
        self.part = within("part", part, 0, 1)
        self.random = random.Random(0)

    def resolve(self, miss: Miss, residency: Residency) -> Action:
        return Action("skip" if self.random.random() < self.part else "load")
