"""The words of the bookkeeping, without torch: an expert's name, where it can be, who wants it, what can be done."""

from enum import IntEnum
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class ExpertId(NamedTuple):
    """One expert of the model."""

    layer: int
    expert: int


class Tier(IntEnum):
    """Where an expert's weights lie, slowest first."""

    DISK = 0
    HOST = 1
    GPU = 2


MERGED = -2  # as an expert's number: the mean of its layer's experts


class Miss(NamedTuple):
    """A wanted expert that is not in the fast tier; where tokens differ, the most demanding one counts."""

    id: ExpertId
    weight: float  # the largest routing weight that any token of the batch gives it
    tokens: int  # how many tokens want it
    tier: Tier  # the best tier that holds it now
    arriving: bool  # a copy is already under way
    share: float = 1.0  # the largest part of a token's routed weight that goes to it
    above: float = 0.0  # the smallest part of a token's routed weight that goes to experts ranked before it
    k: int = 1  # experts that a token asks for
    entropy: float = 1.0  # of a token's routed weights, the smallest; 1: even, 0: one expert has all
    missing: float = 0.0  # the part of the layer's wanted experts that is not here
    wanted: frozenset[int] = frozenset()  # all experts of the layer that the batch asks for


class Residency(Protocol):
    """What a policy may see of the store: read only."""

    def tier(self, id: ExpertId) -> Tier: ...

    def resident(self, id: ExpertId) -> bool: ...

    def has_twin(self, id: ExpertId) -> bool: ...

    def arriving(self, id: ExpertId) -> bool: ...

    def here(self, layer: int) -> NDArray[np.bool_]: ...  # [E], whether it is resident


class Action(NamedTuple):
    """What to do about a miss."""

    how: Literal["load", "twin", "cpu", "substitute", "skip"]
    expert: int = -1  # with "substitute": which one instead, a resident one or MERGED
    behind: bool = False  # with "twin": read the expert itself as well when nothing else is read
