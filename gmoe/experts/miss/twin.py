"""The low-precision twin instead: fewer bytes to wait for."""

from gmoe.experts.expert_id import Action, Miss, Residency
from gmoe.experts.policy import MissPolicy, within


class Policy(MissPolicy):
    """For experts with at most `share` of a token's weight; 0: exact. `twin_share`: the twins' part of the memory."""

    def __init__(self, share: float = 1.0, twin_share: float = 0.25):
        self.share = within("share", share, 0, 1)
        self.twin_share = within("twin_share", twin_share, 0.01, 0.99)

    def resolve(self, miss: Miss, residency: Residency) -> Action:
        low = self.share > 0 and miss.share <= self.share and residency.has_twin(miss.id)
        return Action("twin" if low else "load")
