"""HOBBIT (2411.01433): by the weight of the experts ranked above it, high precision, low precision, or none."""

from gmoe.experts.expert_id import Action, Miss, Residency
from gmoe.experts.policy import MissPolicy, PolicyError, within


class Policy(MissPolicy):
    """Loaded up to `t1`, the twin up to `t2`, skipped beyond; t1 of 1: exact. `twin_share`: as of `twin`."""

    def __init__(self, t1: float = 0.6, t2: float = 0.9, twin_share: float = 0.0):
        self.t1, self.t2 = within("t1", t1, 0, 1), within("t2", t2, 0, 1)
        if t1 > t2 and t1 < 1:
            raise PolicyError(f"the knob t1 is {t1:g} and t2 is {t2:g}; t1 must not be above t2")
        self.twin_share = within("twin_share", twin_share, 0, 0.99)

    def resolve(self, miss: Miss, residency: Residency) -> Action:
        if self.t1 >= 1 or miss.above <= self.t1:
            return Action("load")
        if miss.above <= self.t2 or self.t2 >= 1:
            return Action("twin" if residency.has_twin(miss.id) else "load")
        return Action("skip")
