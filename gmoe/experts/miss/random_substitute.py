"""A control: any resident expert of the layer takes an absent one's place, by chance."""

import random

import numpy as np

from gmoe.experts.expert_id import Action, Miss, Residency
from gmoe.experts.policy import MissPolicy, within


class Policy(MissPolicy):
    """Each with probability `part`; 0: exact."""

    def __init__(self, part: float = 0.3):
        self.part = within("part", part, 0, 1)
        self.random = random.Random(0)

    def resolve(self, miss: Miss, residency: Residency) -> Action:
        if self.random.random() >= self.part:
            return Action("load")
        others = [int(e) for e in np.flatnonzero(residency.here(miss.id.layer)) if e not in miss.wanted]
        return Action("substitute", self.random.choice(others)) if others else Action("load")
