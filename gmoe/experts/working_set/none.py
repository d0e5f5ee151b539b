"""No working set: eviction alone decides."""

from collections.abc import Sequence

from gmoe.experts.expert_id import ExpertId
from gmoe.experts.policy import WorkingSet


class Policy(WorkingSet):
    def plan(self, slots: int) -> Sequence[ExpertId]:
        return ()
