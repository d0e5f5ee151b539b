"""Sequence: one request's tokens and where it stands."""

from collections.abc import Container
from collections.abc import Sequence as Ids
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from gmoe.engine.constraint import Constraint
from gmoe.engine.sampler import Sampler
from gmoe.engine.sampling import SamplingParams


class Status(Enum):
    """A sequence waits, then runs; it may be sent back to wait, and ends once."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


NO_SLOT = -1


class StatePath(NamedTuple):
    """The slots of a model's recurrent states from which the next pass comes and into which it goes.

    The state behind its first `kept_after` tokens is also left in `kept`.
    """

    source: int = NO_SLOT
    target: int = NO_SLOT
    kept: int = NO_SLOT
    kept_after: int = 0


@dataclass(eq=False)
class Sequence:
    """`ids` grow as tokens are chosen; `n_cached` of them are in the KV cache.

    `end_ids` end it with "stop", as does a `constraint` that is complete; `default_seed` serves where `params` have
    none; with `reuse_prefix` False every token of the prompt is computed even where an earlier sequence left its
    blocks.
    """

    ids: list[int]
    params: SamplingParams
    end_ids: Container[int] = frozenset()
    default_seed: int | None = None
    reuse_prefix: bool = True
    constraint: Constraint | None = None
    task: str | None = None  # what kind of request it is, for the admission of several of one kind
    breakers: Container[int] = frozenset()  # token ids at which the repetitions of DRY end
    target_seconds: float | None = None  # from its arrival to the end of its answer
    tells: bool = False  # how much of its prompt is computed
    arrived: float = field(default=0.0, init=False)  # when it was queued
    way: bytes = field(default=b"", init=False)  # in which it is computed; another's blocks are of no use to it
    admitted: bool = field(default=False, init=False)  # it has run, and perhaps been sent back
    n_prompt: int = field(init=False)
    n_cached: int = field(default=0, init=False)
    n_reused: int = field(default=0, init=False)  # tokens of the prompt found in the cache when it began to run
    n_drafted: int = field(default=0, init=False)  # tokens that were computed on trust
    n_accepted: int = field(default=0, init=False)  # of them those that were right
    blocks: list[int] = field(default_factory=list, init=False)
    block_keys: list[bytes] = field(default_factory=list, init=False)  # one for each full block that is computed
    path: StatePath = field(default=StatePath(), init=False)  # where the model keeps states
    status: Status = field(default=Status.WAITING, init=False)
    finish_reason: str | None = field(default=None, init=False)
    sampler: Sampler = field(init=False)

    def __post_init__(self) -> None:
        self.n_prompt = len(self.ids)
        self.sampler = Sampler(self.params, self.default_seed, self.constraint, self.breakers)

    @property
    def generated(self) -> Ids[int]:
        """The tokens after the prompt."""
        return self.ids[self.n_prompt :]

    @property
    def pending(self) -> int:
        """How many tokens are not yet in the KV cache."""
        return len(self.ids) - self.n_cached
