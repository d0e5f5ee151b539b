"""The next layers' routers applied to this layer's input (Mixtral-Offloading, arXiv 2312.17238; HOBBIT; AdapMoE).

As in HOBBIT (2411.01433) it looks past a layer only where that layer lacks none of its foretold experts. HOBBIT reads
those in the precision that their rank asks for; here they are read as they are.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from gmoe.experts.expert_id import ExpertId, Residency
from gmoe.experts.policy import Floats, Ids, Prefetcher, Probabilities, Shape, top, within

Routers = Callable[[int, Any], Floats | None]


class Policy(Prefetcher):
    """`routers(layer, hidden)` gives the probabilities [T, E] of a layer, or None where it routes nothing."""

    def __init__(self, shape: Shape, routers: Routers, ahead: int = 1, residency: Residency | None = None):
        self.n_layers = shape[0]
        self.routers = routers
        self.ahead = int(within("ahead", ahead, 1, 4096))
        self.residency = residency

    def predict(
        self, layer: int, hidden: Any, ids: Ids, weights: Floats, probabilities: Probabilities
    ) -> Iterable[ExpertId]:
        for later in range(layer + 1, min(layer + 1 + self.ahead, self.n_layers)):
            told = self.routers(later, hidden)
            if told is None:
                continue
            k = ids.shape[1]
            chosen = np.argpartition(-told, k - 1, axis=1)[:, :k]  # [T, k]
            mass = np.zeros(told.shape[1])
            np.add.at(mass, chosen.ravel(), np.take_along_axis(told, chosen, axis=1).ravel())
            wanted = top(mass, later, int(np.count_nonzero(mass)))
            lacking = [id for id in wanted if self._lacks(id)]
            yield from wanted
            if lacking:
                return

    def _lacks(self, id: ExpertId) -> bool:
        here = self.residency
        return here is not None and not here.resident(id) and not here.arriving(id)
