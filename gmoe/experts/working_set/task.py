"""eMoE (arXiv 2503.06823): the experts that requests of this task used, foretold anew every `period` requests.

Nothing is foretold to the first request of a task; its own routing is what the second is told.

The paper's predictor is a trained sequence model; here it is the decayed count of each task's own routing. Every layer
keeps as many of its experts, the most used. That the paper also weighs the tokens of all tasks that wait, and how much
a layer minds, is left out.
"""

from collections.abc import Sequence

import numpy as np

from gmoe.experts.expert_id import ExpertId
from gmoe.experts.policy import Floats, Ids, Probabilities, Shape, WorkingSet, evenly, within


class Policy(WorkingSet):
    """Requests name their tasks; at most `capacity` are known, those asked for last."""

    def __init__(self, shape: Shape, period: int = 20, memory: float = 0.9, capacity: int = 64):
        self.shape = shape
        self.period = within("period", period, 1, 1e9)
        self.memory = within("memory", memory, 0, 1)
        self.capacity = int(within("capacity", capacity, 1, 1e6))
        self.profiles: dict[str, Floats] = {}
        self.requests: dict[str, int] = {}
        self.current: Floats = np.zeros(shape)
        self.foretold: Floats = np.zeros(shape)
        self.task = ""

    def begin(self, task: str = "") -> None:
        share = self.current / max(self.current.sum(), 1)
        self.profiles[self.task] = self.memory * self.profiles.get(self.task, 0.0) + share
        self.current = np.zeros(self.shape)
        n = self.requests[task] = self.requests.pop(task, 0) + 1
        for forgotten in list(self.requests)[: -self.capacity]:
            del self.requests[forgotten]
            self.profiles.pop(forgotten, None)
        if task != self.task or (n - 2) % self.period == 0:
            self.foretold = self.profiles.get(task, np.zeros(self.shape))
        self.task = task

    def observe(self, layer: int, ids: Ids, weights: Floats, probabilities: Probabilities) -> None:
        np.add.at(self.current[layer], ids.ravel(), 1)

    def plan(self, slots: int) -> Sequence[ExpertId]:
        return evenly(self.foretold, slots)
