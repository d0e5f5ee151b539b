"""SIEVE (Zhang et al., NSDI 2024): a hand sweeps a queue and takes the first expert not used since it last passed."""

from collections import OrderedDict
from collections.abc import Container

from gmoe.experts.expert_id import ExpertId
from gmoe.experts.policy import EvictionPolicy


class Policy(EvictionPolicy):
    def __init__(self) -> None:
        self.ahead: OrderedDict[ExpertId, bool] = OrderedDict()  # of the hand, oldest first: used since it passed?
        self.behind: OrderedDict[ExpertId, bool] = OrderedDict()  # spared in this sweep

    def hit(self, id: ExpertId) -> None:
        (self.ahead if id in self.ahead else self.behind)[id] = True

    def insert(self, id: ExpertId) -> None:
        self.ahead[id] = False

    def victim(self, pinned: Container[ExpertId]) -> ExpertId:
        met: list[ExpertId] = []  # pinned and unused: the hand only looks at them
        while True:
            if not self.ahead:
                self.ahead, self.behind = self.behind, self.ahead
                if not self.ahead:
                    raise ValueError("every resident expert is pinned")
            id, used = self.ahead.popitem(last=False)
            if used:
                self.behind[id] = False
            elif id in pinned:
                met.append(id)
            else:
                for spared in (id, *reversed(met)):
                    self.ahead[spared] = False
                    self.ahead.move_to_end(spared, last=False)
                return id

    def remove(self, id: ExpertId) -> None:
        self.ahead.pop(id, None)
        self.behind.pop(id, None)
        if not self.ahead:  # the hand starts over before it meets the next newcomer
            self.ahead, self.behind = self.behind, self.ahead
