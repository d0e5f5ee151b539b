"""Cache-Prior (2412.00099): residents get a head start in the choice, the weights stay the router's."""

import numpy as np

from gmoe.experts.expert_id import Residency
from gmoe.experts.policy import Floats, Ids, RoutePolicy, Scores, within


class Policy(RoutePolicy):
    """`prior` times the mean spread of the layer's scores is added to residents'; 0: exact. The first `keep` stay."""

    def __init__(self, prior: float = 0.2, keep: int = 1):
        self.prior = within("prior", prior, 0, 10)
        self.keep = int(within("keep", keep, 0, 1024))
        self.spread: dict[int, tuple[float, int]] = {}  # layer -> mean of max - min, of how many tokens

    def route(self, layer: int, ids: Ids, weights: Floats, residency: Residency, scores: Scores) -> tuple[Ids, Floats]:
        if not self.prior:
            return ids, weights
        chosen = scores.selection.astype(np.float64)
        finite = np.isfinite(chosen)
        spreads = np.where(finite, chosen, -np.inf).max(-1) - np.where(finite, chosen, np.inf).min(-1)
        mean, n = self.spread.get(layer, (0.0, 0))
        mean = (mean * n + spreads.sum()) / (n + len(spreads))
        self.spread[layer] = mean, n + len(spreads)
        bent = chosen + self.prior * mean * residency.here(layer)
        order = np.argsort(-chosen, -1, kind="stable")
        np.put_along_axis(bent, order[:, : min(self.keep, ids.shape[1])], np.inf, -1)
        fresh = np.argsort(-bent, -1, kind="stable")[:, : ids.shape[1]]
        return scores.choose(fresh, ids, weights)
