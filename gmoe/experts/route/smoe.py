"""SMoE (2508.18983): experts just above the cut give way to resident ones just below it."""

import numpy as np

from gmoe.experts.expert_id import Residency
from gmoe.experts.policy import Floats, Ids, RoutePolicy, Scores, within


class Policy(RoutePolicy):
    """S is the best score not chosen: absent experts below (1 + alpha) S yield to others above (1 - alpha) S."""

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
        for t, j in np.argwhere((chosen < (1 + self.alpha) * cut) & ~free[ids]):
            for other in order[t, k:]:
                if p[t, other] <= (1 - self.alpha) * cut[t, 0] or not np.isfinite(scores.selection[t, other]):
                    break
                if free[other] and other not in fresh[t]:
                    fresh[t, j] = other
                    break
        return scores.choose(fresh, ids, weights)
