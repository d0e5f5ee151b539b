"""eMoE (2503.06823): while enough experts are here none is fetched; the token goes to its next best."""

import numpy as np

from gmoe.experts.expert_id import Residency
from gmoe.experts.policy import Floats, Ids, RoutePolicy, Scores, within


class Policy(RoutePolicy):
    """The first `keep` choices are always served; where too few are resident, the best absent ones are asked for.

    With `keep` of as many as a token has it is exact.
    """

    def __init__(self, keep: int = 0):
        self.keep = int(within("keep", keep, 0, 1024))

    def route(self, layer: int, ids: Ids, weights: Floats, residency: Residency, scores: Scores) -> tuple[Ids, Floats]:
        k, here = ids.shape[1], residency.here(layer)
        order = np.argsort(-scores.selection, -1, kind="stable")
        allowed = np.isfinite(np.take_along_axis(scores.selection, order, -1))
        kept = np.arange(order.shape[1]) < min(self.keep, k)
        rank = np.where(kept, 0, np.where(here[order], 1, 2)) + 3 * ~allowed
        best = np.argsort(rank, -1, kind="stable")[:, :k]
        return scores.choose(np.take_along_axis(order, best, -1), ids, weights)
