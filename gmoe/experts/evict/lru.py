"""LRU: the expert unused for longest leaves."""

from collections import OrderedDict
from collections.abc import Container

from gmoe.experts.expert_id import ExpertId
from gmoe.experts.policy import EvictionPolicy


class Policy(EvictionPolicy):
    def __init__(self) -> None:
        self.order: OrderedDict[ExpertId, None] = OrderedDict()

    def hit(self, id: ExpertId) -> None:
        self.order.move_to_end(id)

    def insert(self, id: ExpertId) -> None:
        self.order[id] = None

    def victim(self, pinned: Container[ExpertId]) -> ExpertId:
        for id in self.order:
            if id not in pinned:
                return id
        raise ValueError("every resident expert is pinned")

    def remove(self, id: ExpertId) -> None:
        del self.order[id]
