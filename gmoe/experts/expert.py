"""The words of the room: those of the bookkeeping, and what a router decided."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from gmoe.experts.expert_id import Action, ExpertId, Miss, Residency, Tier
from gmoe.experts.policy import Scores

__all__ = ["Action", "ExpertId", "Miss", "Residency", "Routing", "Tier"]


class Routing(NamedTuple):
    """What a router decided: everything below this seam is the same for all architectures."""

    topk_ids: Tensor  # [T, k] int32
    topk_weights: Tensor  # [T, k] float32, normalised and scaled by the architecture
    scores: Callable[[], Scores] | None = None  # what else the router thought, for policies that choose anew
