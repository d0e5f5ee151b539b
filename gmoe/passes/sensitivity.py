"""sensitivity: how much a layer's lighter experts matter, without gradients (for AdapMoE's adaptive k, 2408.10284)."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from gmoe.experts.expert_id import Residency
from gmoe.experts.policy import Floats, Ids, RoutePolicy, Scores
from gmoe.passes.perplexity import mean_nll

Score = Callable[[Sequence[int]], NDArray[np.float32]]


class DropTail(RoutePolicy):
    """One layer loses the lighter half of its experts; `squares` are the squares of the weight that each token lost."""

    def __init__(self) -> None:
        self.layer = -1
        self.squares: list[float] = []

    def route(self, layer: int, ids: Ids, weights: Floats, residency: Residency, scores: Scores) -> tuple[Ids, Floats]:
        if layer != self.layer or ids.shape[1] < 2:
            return ids, weights
        rank = np.argsort(np.argsort(-weights, -1, kind="stable"), -1)
        tail = rank >= ids.shape[1] - ids.shape[1] // 2
        share = (weights * tail).sum(-1) / np.maximum(weights.sum(-1), 1e-30)
        self.squares += (share**2).tolist()
        return scores.choose(np.where(tail, -1, ids), ids, weights)


def sensitivities(
    policy: DropTail, score: Score, layers: Sequence[int], n_layer: int, cut: Sequence[Sequence[int]]
) -> Iterator[tuple[int, float]]:
    """(layer, sensitivity): the loss in nats a token over the mean square of the dropped weight, at least 0.

    `policy` must be the route policy of the model that `score` runs.
    """
    policy.layer = n_layer  # none
    exact = mean_nll(cut, score)
    for layer in layers:
        policy.layer, policy.squares = layer, []
        lost = mean_nll(cut, score) - exact
        yield layer, max(0.0, lost) / max(float(np.mean(policy.squares or [1.0])), 1e-9)
