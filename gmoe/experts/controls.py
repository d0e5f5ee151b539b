"""Controls of the simulator: what chance, and a list of the hottest, would do."""

from collections.abc import Container, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from gmoe.experts.expert_id import ExpertId
from gmoe.experts.policy import MOST, EvictionPolicy, Floats, PolicyError, ScoredEviction, load, within
from gmoe.experts.schedule import Schedule

CONTROLS: Mapping[str, tuple[str, ...]] = {"random": ("seed",), "static": ()}  # and their knobs


class Random(EvictionPolicy):
    """Anybody leaves; the same seed, the same answer."""

    def __init__(self, seed: int = 0):
        self.random = np.random.default_rng(seed)
        self.residents: list[ExpertId] = []
        self.place: dict[ExpertId, int] = {}

    def hit(self, id: ExpertId) -> None:
        pass

    def insert(self, id: ExpertId) -> None:
        self.place[id] = len(self.residents)
        self.residents.append(id)

    def victim(self, pinned: Container[ExpertId]) -> ExpertId:
        while True:
            id = self.residents[self.random.integers(len(self.residents))]
            if id not in pinned:
                return id

    def remove(self, id: ExpertId) -> None:
        last = self.residents.pop()
        at = self.place.pop(id)
        if last != id:
            self.residents[at] = last
            self.place[last] = at


class Static(ScoredEviction):
    """The hottest experts of the whole trace stay; the others pass through what is left."""

    def __init__(self, schedule: Schedule):
        super().__init__(schedule.shape)
        self.count = np.zeros(schedule.shape)
        for turn in schedule.turns:
            self.count[turn.layer, [id.expert for id in turn.wanted]] += 1

    def score(self) -> Floats:
        return self.count


def eviction(
    name: str, knobs: Mapping[str, Any], schedule: Schedule, given: Mapping[str, Any] = MappingProxyType({})
) -> EvictionPolicy:
    """A policy of the folder, or a control, for a replay of this schedule; `given` is what else there is to offer."""
    if name in CONTROLS:
        for knob, value in knobs.items():
            if knob not in CONTROLS[name]:
                known = ", ".join(CONTROLS[name]) or "none"
                raise PolicyError(f"evict.{name}: no knob is called {knob!r}; there are {known}")
            within(knob, value, 0, MOST)
        return Random(int(knobs.get("seed", 0))) if name == "random" else Static(schedule)
    future = schedule.future() if name == "belady" else ()
    policy: EvictionPolicy = load("evict", name, knobs, **{"shape": schedule.shape, **given}, future=future)
    return policy
