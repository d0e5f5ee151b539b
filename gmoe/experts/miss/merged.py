"""MEO's mean (2310.09832) as a fallback: one frequency-weighted mean expert a layer, always resident."""

from collections.abc import Container

from gmoe.experts.expert_id import MERGED, Action, Miss, Residency
from gmoe.experts.policy import MissPolicy, within


class Policy(MissPolicy):
    """For experts with at most `share` of a token's weight; 0: exact. `merged`: the layers that have one."""

    def __init__(self, merged: Container[int], share: float = 0.1):
        self.merged = merged
        self.share = within("share", share, 0, 1)

    def resolve(self, miss: Miss, residency: Residency) -> Action:
        mean = self.share > 0 and miss.share <= self.share and miss.id.layer in self.merged
        return Action("substitute", MERGED) if mean else Action("load")
