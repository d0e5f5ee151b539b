"""SMoE (2508.18983): experts just above the cut give way to resident ones just below it."""

import numpy as np

from gmoe.experts.expert_id import Residency
from gmoe.experts.policy import Floats, Ids, RoutePolicy, Scores, within


class Policy(RoutePolicy):
    """S is the best score not chosen: absent experts below (1 + alpha) S yield to others above (1 - alpha) S.

    The others are resident, or come anyway for this token or another. 0: exact.
    """

    def __init__(self, alpha: float = 0.3):
        self.alpha = within("alpha", alpha, 0, 1)

    def route(self, layer: int, ids: Ids, weights: Floats, residency: Residency, scores: Scores) -> tuple[Ids, Floats]:
        k, n_expert = ids.shape[1], scores.selection.shape[1]
        if not self.alpha or k == n_expert:
            return ids, weights
        p = scores.probabilities
        order = np.argsort(-scores.selection, -1, kind="stable")
        cut = np.take_along_axis(p, order[:, k : k + 1], -1)  # [T, 1]
        chosen = np.take_along_axis(p, ids, -1)
        free = residency.here(layer).copy()
        free[ids[chosen >= (1 + self.alpha) * cut]] = True  # needed anyway, by this token or another
        fresh = ids.copy()
        near = (p > (1 - self.alpha) * cut) & (p <= cut) & np.isfinite(scores.selection)
        for t, j in np.argwhere(chosen < (1 + self.alpha) * cut):
            if free[ids[t, j]]:
                continue
            rest = order[t, k:]
            others = rest[near[t, rest] & free[rest] & ~np.isin(rest, fresh[t])]
            if len(others):
                fresh[t, j] = others[0]
            else:
                free[ids[t, j]] = True  # it comes
        return scores.choose(fresh, ids, weights)
