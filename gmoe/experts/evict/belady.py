"""Belady's choice (IBM Systems Journal, 1966): the expert wanted again last leaves; it must know the future."""

from collections.abc import Sequence

import numpy as np

from gmoe.experts.policy import Floats, Ids, Probabilities, ScoredEviction, Shape


class Policy(ScoredEviction):
    """`future` holds the runs of layers to come, in order: (layer, the distinct experts it will ask for)."""

    def __init__(self, shape: Shape, future: Sequence[tuple[int, Sequence[int]]]):
        super().__init__(shape)
        self.next_use = np.full(shape, np.inf)
        self.again: list[Sequence[float]] = []  # of each run, when its experts are asked for after it
        for n in range(len(future) - 1, -1, -1):
            layer, experts = future[n]
            self.again.append(self.next_use[layer, experts].tolist())
            self.next_use[layer, experts] = n
        self.runs = [experts for _, experts in reversed(future)]

    def learn(self, layer: int, ids: Ids, weights: Floats, probabilities: Probabilities) -> None:
        self.next_use[layer, self.runs.pop()] = self.again.pop()

    def score(self) -> Floats:
        return -self.next_use
