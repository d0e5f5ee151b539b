"""The words of the room: those of the bookkeeping, and what a router decided."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gmoe.experts.expert_id import Action, ExpertId, Miss, Residency, Tier
from gmoe.experts.policy import Scores, reading

__all__ = ["Action", "ExpertId", "Hidden", "Miss", "Residency", "Routing", "Tier"]


class Hidden:
    """What a router saw, `rows` [T, D], for prefetchers; as an array it is in the host's memory, and for reading."""

    def __init__(self, rows: Tensor):
        self.rows = rows

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        rows = self.rows.cpu().numpy()
        return np.array(rows, dtype) if copy else reading(np.asarray(rows, dtype))


class Routing(NamedTuple):
    """What a router decided: everything below this seam is the same for all architectures."""

    topk_ids: Tensor  # [T, k] int32
    topk_weights: Tensor  # [T, k] float32, normalised and scaled by the architecture
    scores: Callable[[], Scores] | None = None  # what else the router thought, for policies that choose anew
