"""BigMoeOnEdge's drop: an absent expert that has less than a part of the uniform share is left out."""

from gmoe.experts.expert_id import Action, Miss, Residency
from gmoe.experts.policy import MissPolicy, within


class Policy(MissPolicy):
    """Skipped below `drop` / k of a token's weight, k experts a token; 0: exact, k: whatever is absent."""

    def __init__(self, drop: float = 0.75):
        self.drop = within("drop", drop, 0, 1024)

    def resolve(self, miss: Miss, residency: Residency) -> Action:
        return Action("skip" if miss.share * miss.k < self.drop else "load")
