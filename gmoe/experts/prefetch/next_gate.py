"""The next layers' routers applied to this layer's input (Mixtral-Offloading, arXiv 2312.17238; HOBBIT; AdapMoE)."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from gmoe.experts.expert_id import ExpertId
from gmoe.experts.policy import Floats, Ids, Prefetcher, Shape, top


class Policy(Prefetcher):
    """`routers(layer, hidden)` gives the probabilities [T, E] of a layer, or None where it routes nothing."""

    def __init__(self, shape: Shape, routers: Callable[[int, Any], Floats | None], ahead: int = 1):
        self.n_layers = shape[0]
        self.routers = routers
        self.ahead = ahead

    def predict(self, layer: int, hidden: Any, ids: Ids, weights: Floats) -> Iterable[ExpertId]:
        for later in range(layer + 1, min(layer + 1 + self.ahead, self.n_layers)):
            probabilities = self.routers(later, hidden)
            if probabilities is None:
                continue
            k = ids.shape[1]
            chosen = np.argpartition(-probabilities, k - 1, axis=1)[:, :k]  # [T, k]
            mass = np.zeros(probabilities.shape[1])
            np.add.at(mass, chosen.ravel(), np.take_along_axis(probabilities, chosen, axis=1).ravel())
            yield from top(mass, later, int(np.count_nonzero(mass)))
