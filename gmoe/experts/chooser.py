"""Chooser: which eviction and working set serve this routing best, found by replaying what has run.

The candidates are replayed a little before each pass, a few per cent of the time that passes take; the pools of a
sample of the layers, with their part of the slots, stand for all.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gmoe.experts.auto import FIRST, AutoEviction, AutoPrefetch, AutoWorkingSet
from gmoe.experts.recorder import Recorder
from gmoe.experts.schedule import Schedule
from gmoe.experts.simulate import Groups, Replay
from gmoe.experts.trace import Trace

EVICT = ("lru", "least_stale", "probability", "score_window", "lfu", "hobbit")
WORKING_SET = ("quota", "pattern")
MARGIN = 0.003  # of the bytes asked for: what a change must save
LAYERS = 12  # that are replayed
PASSES = 96  # that are replayed
SHARE = 0.02  # of the time of a pass that may go into replays
SLICE = 4  # turns replayed before the clock is looked at


class Verdict(NamedTuple):
    """What a comparison found: who wins, and the share of the bytes asked for that each did not have to read."""

    evict: str
    working_set: str
    saved: dict[str, float]


def compare(schedule: Schedule, groups: Groups, now: str = FIRST) -> Iterator[Verdict | None]:
    """Replay all candidates; yields None after every few turns, and the verdict at last.

    The first third of the turns fills the pools and is not counted; `now` stays unless another saves enough.
    """
    schedule, groups = sample(schedule, groups)
    saved: dict[str, float] = {}
    for evict in EVICT:
        yield from _replay(schedule, groups, evict, "none", saved, evict)
    best = max(EVICT, key=lambda name: saved[name] + (MARGIN if name == now else 0.0))
    kept = "none"
    for name in WORKING_SET:
        yield from _replay(schedule, groups, best, name, saved, f"{best}+{name}")
        if saved[f"{best}+{name}"] > max(saved[best] + MARGIN, saved.get(f"{best}+{kept}", 0.0)):
            kept = name
    yield Verdict(best, kept, saved)


def sample(schedule: Schedule, groups: Groups) -> tuple[Schedule, Groups]:
    """Every n-th layer of those that route, and their part of the slots."""
    routed = sorted({turn.layer for turn in schedule.turns})
    some = set(routed[:: -(-len(routed) // LAYERS)])
    parts = [(some.intersection(layers), len(layers), slots) for layers, slots in groups]
    return schedule.part(some), [(of, max(1, slots * len(of) // n)) for of, n, slots in parts if of]


def _replay(
    schedule: Schedule, groups: Groups, evict: str, working_set: str, saved: dict[str, float], name: str
) -> Iterator[None]:
    replay = Replay(schedule, schedule.bytes, evict, "none", working_set, groups=groups)
    before = (0, 0)
    asked = 0
    for at in range(0, len(schedule), SLICE):
        turns = schedule.turns[at : at + SLICE]
        asked += sum(len(turn.wanted) * schedule.header.expert_bytes[turn.layer] for turn in turns)
        report = replay.feed(turns)
        if at <= len(schedule) // 3:
            before = (report.decode.bytes + report.prefill.bytes, asked)
        yield
    read = report.decode.bytes + report.prefill.bytes - before[0]
    saved[name] = 1 - read / max(asked - before[1], 1)


class Chooser:
    """Watches a running model; `step` is called before each pass. `verdicts` says what was found so far."""

    def __init__(
        self,
        recorder: Recorder,
        groups: Groups,
        evicts: Sequence[AutoEviction],
        working_set: AutoWorkingSet | None,
        prefetch: AutoPrefetch | None,
        passed: Callable[[float, int], None] = lambda seconds, rows: None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        """`passed` hears of every decode pass: how long it took, and how many rows it had."""
        self.recorder, self.groups = recorder, groups
        self.evicts, self.working_set, self.prefetch = evicts, working_set, prefetch
        self.verdicts: list[Verdict] = []
        self._clock, self._passed = clock, passed
        self._began = 0.0
        self._rows: NDArray[np.int32] | None = None  # the requests of the pass under way, where all of them decode
        self._decoded, self._next = 0, PASSES
        self._work: Iterator[Verdict | None] | None = None
        self._schedule: Schedule | None = None

    def step(self, request: NDArray[np.int32], phase: NDArray[np.uint8]) -> None:
        """The rows of the pass that comes, as `Recorder.begin_step` has them."""
        decode = bool(phase.all())
        seconds = self._clock() - self._began
        if decode and self._rows is not None and np.array_equal(self._rows, request):
            self._decoded += 1
            self._passed(seconds, len(request))
            if self.prefetch is not None:
                self.prefetch.passed(seconds)
            self._choose(SHARE * seconds)
        self._rows = request if decode else None
        self._began = self._clock()

    def _choose(self, seconds: float) -> None:
        """Go on with the comparison, at most so long; begin one where enough has run since the last."""
        if not self.evicts:
            return
        end = self._clock() + seconds
        if self._work is None:
            if self._decoded >= self._next:
                self._next = 4 * self._decoded
                self._schedule = Schedule(self.recorder.trace().tail(PASSES))
                self._work = compare(self._schedule, self.groups, self.evicts[0].name)
            return
        for verdict in self._work:
            if verdict is not None:
                self.decide(verdict)
                self._work = None
            if self._clock() >= end:
                return

    def learn(self, trace: Trace, seconds: float) -> None:
        """Decide by a trace of earlier runs, at most so long."""
        if not self.evicts:
            return
        schedule = Schedule(replace(trace.tail(PASSES), scores=None))  # `AutoEviction` does without
        if not len(schedule):
            return
        self._schedule = schedule
        end = self._clock() + seconds
        for verdict in compare(schedule, self.groups, self.evicts[0].name):
            if verdict is not None:
                self.decide(verdict)
            if self._clock() >= end:
                return

    def decide(self, verdict: Verdict) -> None:
        """Change to what is better."""
        self.verdicts.append(verdict)
        past = self._schedule.turns[-16 * LAYERS :] if self._schedule else []
        for evict in self.evicts:
            if evict.name != verdict.evict:
                evict.change(verdict.evict, past)
        if self.working_set is not None and self.working_set.name != verdict.working_set:
            self.working_set.change(verdict.working_set)
