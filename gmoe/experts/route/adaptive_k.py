"""AdapMoE (2408.10284): fewer experts where the layer's loss hardly feels it."""

from collections.abc import Sequence

import numpy as np

from gmoe.experts.expert_id import Residency
from gmoe.experts.policy import Floats, Ids, PolicyError, RoutePolicy, Scores, within


class Policy(RoutePolicy):
    """The tail is dropped as long as (its part of the weight) ** 2 * sensitivity < threshold; tokens one at a time.

    `sensitivity` of each layer: what `gmoe trace sensitivity` measures; the paper's comes from gradients. Its tail
    is the second of two experts.
    """

    def __init__(self, sensitivity: Sequence[float], threshold: float = 0.005):
        self.threshold = within("threshold", threshold, 0, 1e6)
        self.sensitivity = np.asarray(sensitivity, dtype=np.float64)
        if (self.sensitivity < 0).any() or not np.isfinite(self.sensitivity).all():
            raise PolicyError("a layer's sensitivity must be a number of at least 0")

    def route(self, layer: int, ids: Ids, weights: Floats, residency: Residency, scores: Scores) -> tuple[Ids, Floats]:
        if len(ids) > 1 or not self.threshold:
            return ids, weights
        share = weights[0] / weights[0].sum()
        order = np.argsort(share, kind="stable")  # lightest first
        lost = np.cumsum(share[order]) ** 2 * self.sensitivity[layer]
        drop = order[: min(int((lost < self.threshold).sum()), len(order) - 1)]
        fresh = ids.copy()
        fresh[0, drop] = -1
        return scores.choose(fresh, ids, weights)
