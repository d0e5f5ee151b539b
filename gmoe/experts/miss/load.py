"""On-demand loading: read it and wait; nothing is lost but time."""

from gmoe.experts.expert_id import Action, Miss, Residency
from gmoe.experts.policy import MissPolicy


class Policy(MissPolicy):
    def resolve(self, miss: Miss, residency: Residency) -> Action:
        return Action("load")
