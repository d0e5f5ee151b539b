"""Schedule: a trace laid out for replays, once for all of them: who is asked for, pass by pass and layer by layer."""

from collections.abc import Container
from copy import copy
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gmoe.experts.expert_id import ExpertId
from gmoe.experts.policy import Probabilities, reading
from gmoe.experts.trace import Header, Trace, TraceError


class Turn(NamedTuple):
    """One layer of one pass; a pass asks a layer once for each distinct expert."""

    request: int
    step: int
    phase: int
    layer: int
    ids: NDArray[np.int16]  # [T, k]
    weights: NDArray[np.float32]  # [T, k]
    wanted: tuple[ExpertId, ...]  # distinct, in the order in which the tokens name them
    pinned: frozenset[ExpertId]  # the same
    probabilities: Probabilities  # of all experts, where they were recorded


class Schedule:
    """The turns of a trace, and what an oracle would know of them."""

    def __init__(self, trace: Trace):
        """Raises TraceError where the trace does not say how large its experts are."""
        self.header: Header = trace.header
        self.shape = trace.header.n_layer, trace.header.n_expert
        names = [[ExpertId(layer, expert) for expert in range(self.shape[1])] for layer in range(self.shape[0])]
        self.turns: list[Turn] = []
        for event in trace.events():
            row = names[event.layer]
            wanted = tuple(row[expert] for expert in dict.fromkeys(event.ids.ravel().tolist()))
            where = event.request, event.step, event.phase, event.layer
            told = None if event.scores is None else partial(event.scores.astype, np.float32)
            self.turns.append(Turn(*where, reading(event.ids), reading(event.weights), wanted, frozenset(wanted), told))
        if any(not trace.header.expert_bytes[turn.layer] for turn in self.turns):
            raise TraceError("the trace does not say how many bytes an expert has")

    def __len__(self) -> int:
        return len(self.turns)

    @property
    def bytes(self) -> int:
        """Of all experts of the model."""
        return sum(self.header.expert_bytes) * self.header.n_expert

    def future(self) -> list[tuple[int, list[int]]]:
        """What is asked for, in order, as `evict/belady.py` takes it."""
        return [(turn.layer, [id.expert for id in turn.wanted]) for turn in self.turns]

    def part(self, layers: Container[int]) -> "Schedule":
        """The turns of these layers alone: a sample that replays faster."""
        part = copy(self)
        part.turns = [turn for turn in self.turns if turn.layer in layers]
        return part
