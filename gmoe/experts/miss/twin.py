"""The low-precision twin instead: fewer bytes to wait for."""

from gmoe.experts.expert_id import Action, Miss, Residency
from gmoe.experts.policy import MissPolicy, within


class Policy(MissPolicy):
    """For experts with at most `share` of a token's weight; 0: exact.

    `twin_share` is the twins' part of the memory, 0: by measured cost. With `behind` of 1 the expert itself is read
    when nothing else is, for the next time.
    """

    def __init__(self, share: float = 1.0, twin_share: float = 0.0, behind: int = 0):
        self.share = within("share", share, 0, 1)
        self.twin_share = within("twin_share", twin_share, 0, 0.99)
        self.behind = bool(within("behind", behind, 0, 1))

    def resolve(self, miss: Miss, residency: Residency) -> Action:
        low = self.share > 0 and miss.share <= self.share and residency.has_twin(miss.id)
        return Action("twin", behind=self.behind) if low else Action("load")
