"""Fiddler (2402.07033): what lies in host memory is computed there, activations move instead of weights."""

from gmoe.experts.expert_id import Action, Miss, Residency, Tier
from gmoe.experts.policy import MissPolicy


class Policy(MissPolicy):
    """Experts on disk are still loaded."""

    def resolve(self, miss: Miss, residency: Residency) -> Action:
        return Action("cpu" if miss.tier is Tier.HOST else "load")
