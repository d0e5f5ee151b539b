"""SMoE's balance (2508.18983): load or compute on the CPU, whichever is through first by measured cost."""

from typing import Protocol

from gmoe.experts.expert_id import Action, Miss, Residency, Tier
from gmoe.experts.policy import MissPolicy


class Costs(Protocol):
    """Running means, in seconds."""

    def load(self, tier: Tier) -> float: ...  # of one expert, to the fast tier

    def cpu(self, tokens: int) -> float: ...  # of one expert for so many tokens


class Policy(MissPolicy):
    """Both work side by side: a miss goes to the one whose queue ends sooner; a layer starts with empty queues."""

    def __init__(self, costs: Costs):
        self.costs = costs
        self.loading = self.computing = 0.0

    def resolve(self, miss: Miss, residency: Residency) -> Action:
        if miss.first:
            self.loading = self.computing = 0.0
        load, cpu = self.costs.load(miss.tier), self.costs.cpu(miss.tokens)
        if miss.tier is not Tier.HOST or self.loading + load <= self.computing + cpu:
            self.loading += load
            return Action("load")
        self.computing += cpu
        return Action("cpu")
