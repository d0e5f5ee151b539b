"""The words of the bookkeeping, without torch: an expert's name, where it can be, who wants it, what can be done."""

from enum import IntEnum
from typing import Literal, NamedTuple, Protocol


class ExpertId(NamedTuple):
    """One expert of the model."""

    layer: int
    expert: int


class Tier(IntEnum):
    """Where an expert's weights lie, slowest first."""

    DISK = 0
    HOST = 1
    GPU = 2


class Miss(NamedTuple):
    """A wanted expert that is not in the fast tier."""

    id: ExpertId
    weight: float  # the largest routing weight that any token of the batch gives it
    tokens: int  # how many tokens want it
    tier: Tier  # the best tier that holds it now
    arriving: bool  # a copy is already under way


class Residency(Protocol):
    """What a policy may see of the store: read only."""

    def tier(self, id: ExpertId) -> Tier: ...

    def resident(self, id: ExpertId) -> bool: ...

    def has_twin(self, id: ExpertId) -> bool: ...


class Action(NamedTuple):
    """What to do about a miss."""

    how: Literal["load", "twin", "cpu", "substitute", "skip"]
    expert: int = -1  # with "substitute": which one instead
