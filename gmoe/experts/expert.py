"""The words of the room: those of the bookkeeping, and what a router decided."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gmoe.experts.expert_id import Action, ExpertId, Miss, Residency, Tier
from gmoe.experts.policy import Floats, Scores, reading

__all__ = ["Action", "ExpertId", "Hidden", "Miss", "Residency", "Routing", "Thought", "Tier"]


class Hidden:
    """What a router saw, `rows` [T, D], for prefetchers; as an array it is in the host's memory, and for reading."""

    def __init__(self, rows: Tensor):
        self.rows = rows

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        rows = self.rows.cpu().numpy()
        return np.array(rows, dtype) if copy else reading(np.asarray(rows, dtype))


class Thought:
    """The probabilities of all experts [T, E], for policies that ask for them: reckoned then, once, and for reading."""

    def __init__(self, scores: Callable[[], Scores]):
        self._scores = scores
        self._known: Floats | None = None

    def __call__(self) -> Floats:
        if self._known is None:
            self._known = reading(self._scores().probabilities)
        return self._known


class Routing(NamedTuple):
    """What a router decided: everything below this seam is the same for all architectures."""

    topk_ids: Tensor  # [T, k] int32
    topk_weights: Tensor  # [T, k] float32, normalised and scaled by the architecture
    scores: Callable[[], Scores] | None = None  # what else the router thought, for policies that choose anew
    seen: Tensor | None = None  # what it saw [T, D], where that is not what experts are given
