"""Sequence: one request's tokens and where it stands."""

from collections.abc import Container
from collections.abc import Sequence as Ids
from dataclasses import dataclass, field

from gmoe.engine.sampler import Sampler
from gmoe.engine.sampling import SamplingParams


@dataclass(eq=False)
class Sequence:
    """`ids` grow as tokens are chosen; `n_cached` of them are in the KV cache."""

    ids: list[int]
    params: SamplingParams
    end_ids: Container[int] = frozenset()
    default_seed: int | None = None
    n_prompt: int = field(init=False)
    n_cached: int = 0
    blocks: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    sampler: Sampler = field(init=False)

    def __post_init__(self) -> None:
        self.n_prompt = len(self.ids)
        self.sampler = Sampler(self.params, self.default_seed)

    @property
    def generated(self) -> Ids[int]:
        """The tokens after the prompt."""
        return self.ids[self.n_prompt :]
