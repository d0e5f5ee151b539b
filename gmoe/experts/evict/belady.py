"""Belady's choice (IBM Systems Journal, 1966): the expert wanted again last leaves; it must know the future."""

from collections import deque
from collections.abc import Sequence

import numpy as np

from gmoe.experts.expert_id import ExpertId
from gmoe.experts.policy import Floats, Ids, ScoredEviction, Shape


class Policy(ScoredEviction):
    """`future` holds the runs of layers to come, in order: (layer, the distinct experts it will ask for)."""

    def __init__(self, shape: Shape, future: Sequence[tuple[int, Sequence[int]]]):
        super().__init__(shape)
        self.uses: dict[ExpertId, deque[int]] = {}
        for n, (layer, experts) in enumerate(future):
            for expert in experts:
                self.uses.setdefault(ExpertId(layer, expert), deque()).append(n)
        self.next_use = np.full(shape, np.inf)
        for id, uses in self.uses.items():
            self.next_use[id] = uses[0]

    def observe(self, layer: int, ids: Ids, weights: Floats) -> None:
        for expert in set(ids.ravel().tolist()):
            id = ExpertId(layer, expert)
            self.uses[id].popleft()
            self.next_use[id] = self.uses[id][0] if self.uses[id] else np.inf

    def score(self) -> Floats:
        return -self.next_use
