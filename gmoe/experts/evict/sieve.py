"""SIEVE (Zhang et al., NSDI 2024): a hand sweeps a queue and takes the first expert not used since it last passed."""

from collections.abc import Container

from gmoe.experts.expert_id import ExpertId
from gmoe.experts.policy import EvictionPolicy


class Policy(EvictionPolicy):
    def __init__(self) -> None:
        self.visited: dict[ExpertId, bool] = {}  # oldest first
        self.behind: dict[ExpertId, bool] = {}  # spared in this sweep

    def hit(self, id: ExpertId) -> None:
        (self.visited if id in self.visited else self.behind)[id] = True

    def insert(self, id: ExpertId) -> None:
        self.visited[id] = False

    def victim(self, pinned: Container[ExpertId]) -> ExpertId:
        pinned_here: list[ExpertId] = []
        while True:
            if not self.visited:
                self.visited, self.behind = self.behind, {}
            id = next(iter(self.visited))
            if not self.visited[id] and id not in pinned:
                self.visited = dict.fromkeys(pinned_here, False) | self.visited
                return id
            if not self.visited.pop(id):
                pinned_here.append(id)
            else:
                self.behind[id] = False
            if not self.visited and not self.behind:
                raise ValueError("every expert is pinned")

    def remove(self, id: ExpertId) -> None:
        self.visited.pop(id, None)
        self.behind.pop(id, None)
        if not self.visited:  # the hand starts over before it meets the next newcomer
            self.visited, self.behind = self.behind, {}
