"""SMoE's balance (2508.18983): what weighs most is loaded and what weighs least computed on the CPU, side by side."""

from collections.abc import Sequence
from typing import Protocol

from gmoe.experts.expert_id import Action, ExpertId, Miss, Residency, Tier
from gmoe.experts.policy import MissPolicy


class Costs(Protocol):
    """Running means, in seconds."""

    def load(self, tier: Tier) -> float: ...  # of one expert, to the fast tier

    def cpu(self, tokens: int) -> float: ...  # of one expert for so many tokens


class Policy(MissPolicy):
    """A layer's misses go, from both ends of their order by weight, to the queue that ends sooner with its next.

    What lies on disk is loaded, before the others.
    """

    def __init__(self, costs: Costs):
        self.costs = costs
        self.computed: set[ExpertId] = set()

    def meet(self, misses: Sequence[Miss]) -> None:
        left = sorted((miss for miss in misses if miss.tier is Tier.HOST), key=lambda miss: -miss.weight)
        loading = sum(self.costs.load(miss.tier) for miss in misses if miss.tier is not Tier.HOST)
        computing, self.computed = 0.0, set()
        while left:
            load, cpu = self.costs.load(Tier.HOST), self.costs.cpu(left[-1].tokens)
            if loading + load <= computing + cpu:
                loading += load
                left.pop(0)
            else:
                computing += cpu
                self.computed.add(left.pop().id)

    def resolve(self, miss: Miss, residency: Residency) -> Action:
        return Action("cpu" if miss.id in self.computed else "load")
