"""MoBiLE-style (2510.12357, our reading of its abstract): half the experts where they have nearly all the weight."""

import numpy as np

from gmoe.experts.expert_id import Residency
from gmoe.experts.policy import Floats, Ids, RoutePolicy, Scores, within


class Policy(RoutePolicy):
    """A token whose better half of experts has at least `mass` of the weight gets only that half; 1: exact.

    What the paper looks at instead of the weight, and what it falls back to, is not known here.
    """

    def __init__(self, mass: float = 0.8):
        self.mass = within("mass", mass, 0, 1)

    def route(self, layer: int, ids: Ids, weights: Floats, residency: Residency, scores: Scores) -> tuple[Ids, Floats]:
        half = ids.shape[1] // 2
        if self.mass >= 1 or not half:
            return ids, weights
        rank = np.argsort(np.argsort(-weights, -1, kind="stable"), -1)
        little = rank < ids.shape[1] - half
        enough = (weights * little).sum(-1) >= self.mass * weights.sum(-1)
        return scores.choose(np.where(enough[:, None] & ~little, -1, ids), ids, weights)
