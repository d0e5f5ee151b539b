"""`auto`: policies that begin with what is safe, and change to what the routing or the clock says is better.

A prefetcher is tried in turns with none, and stays only while it saves measured time; `chooser.py` decides on the rest.
"""

from collections import OrderedDict
from collections.abc import Callable, Container, Iterable, Sequence
from statistics import fmean, stdev
from typing import Any

from gmoe.experts.expert_id import ExpertId
from gmoe.experts.policy import EvictionPolicy, Floats, Ids, Prefetcher, Probabilities, WorkingSet
from gmoe.experts.schedule import Turn

FIRST = "least_stale"  # cheap, and on no real trace worse than LRU: docs/benchmarks/policies.md


class AutoEviction(EvictionPolicy):
    """One pool's policy, which can be exchanged while it runs; `build` makes one by its name.

    It is told of the chosen experts only, as were those that it was compared with: replays of what has run.
    """

    def __init__(self, build: Callable[[str], EvictionPolicy], name: str = FIRST):
        self.build, self.name = build, name
        self.policy = build(name)
        self.residents: OrderedDict[ExpertId, None] = OrderedDict()  # the one unused for longest first

    def change(self, name: str, past: Iterable[Turn]) -> None:
        """Go on with another policy, which has seen the past."""
        self.name, self.policy = name, self.build(name)
        for turn in past:
            self.policy.observe(turn.layer, turn.ids, turn.weights, None)
        for id in self.residents:
            self.policy.insert(id)

    def begin(self) -> None:
        self.policy.begin()

    def observe(self, layer: int, ids: Ids, weights: Floats, probabilities: Probabilities) -> None:
        self.policy.observe(layer, ids, weights, None)

    def hit(self, id: ExpertId) -> None:
        self.residents.move_to_end(id)
        self.policy.hit(id)

    def insert(self, id: ExpertId) -> None:
        self.residents[id] = None
        self.policy.insert(id)

    def victim(self, pinned: Container[ExpertId]) -> ExpertId:
        return self.policy.victim(pinned)

    def remove(self, id: ExpertId) -> None:
        del self.residents[id]
        self.policy.remove(id)


class AutoWorkingSet(WorkingSet):
    """A working set that can be exchanged while it runs."""

    def __init__(self, build: Callable[[str], WorkingSet]):
        self.build = build
        self.change("none")

    def change(self, name: str) -> None:
        """Go on with another."""
        self.name, self.policy = name, self.build(name)

    def begin(self, task: str = "") -> None:
        self.policy.begin(task)

    def observe(self, layer: int, ids: Ids, weights: Floats, probabilities: Probabilities) -> None:
        self.policy.observe(layer, ids, weights, probabilities)

    def plan(self, slots: int) -> Sequence[ExpertId]:
        return self.policy.plan(slots)


class AutoPrefetch(Prefetcher):
    """A prefetcher that is on only while it pays: passes with and without it are timed in turns of `turn`.

    A trial ends early where it is clearly slower, and is taken up again after ever longer times, with the next name.
    """

    def __init__(
        self,
        build: Callable[[str], Prefetcher],
        candidates: Sequence[str],
        turn: int = 4,
        trial: int = 48,
        after: int = 96,
    ):
        self.build, self.candidates, self.turn, self.trial = build, candidates, turn, trial
        self.name, self.policy, self.on = "none", build("none"), False
        self._passes, self._next, self._wait, self._trials = 0, after, 256, 0
        self._times: dict[bool, list[float]] = {}
        self._watch: list[float] = []  # while it is on: the times since it was

    def begin(self) -> None:
        self.policy.begin()

    def predict(
        self, layer: int, hidden: Any, ids: Ids, weights: Floats, probabilities: Probabilities
    ) -> Iterable[ExpertId]:
        return self.policy.predict(layer, hidden, ids, weights, probabilities) if self.on else ()

    def passed(self, seconds: float) -> None:
        """A decode pass took so long; decides about the next."""
        self._passes += 1
        if self._times:
            self._judge(seconds)
        elif self._passes >= self._next:
            self.name = self.candidates[self._trials % len(self.candidates)]
            self.policy = self.build(self.name)
            self._times = {False: [], True: []}
            self._trials += 1
            self._turn_to(False)

    def _judge(self, seconds: float) -> None:
        """One pass of a trial; the first of each turn is not counted: it pays for the other's reads."""
        self._left -= 1
        if self._left < self.turn:
            self._times[self.on].append(seconds)
        off, on = self._times[False], self._times[True]
        verdict = 0.0
        if min(len(off), len(on)) >= self.turn:
            spread = (stdev(off) ** 2 / len(off) + stdev(on) ** 2 / len(on)) ** 0.5
            verdict = (fmean(off) - fmean(on)) / max(spread, 1e-9)
        if verdict < -2 or len(off) + len(on) >= self.trial:
            self._end(pays=verdict > 2 and fmean(on) < 0.98 * fmean(off))
        elif not self._left:
            self._turn_to(not self.on)

    def _turn_to(self, on: bool) -> None:
        self.on, self._left = on, self.turn + 1

    def _end(self, pays: bool) -> None:
        """On or off until the next trial; what pays is looked at again after a fixed time, what does not ever later."""
        self.on, self._times = pays, {}
        self._wait = 512 if pays else 2 * self._wait
        self._next = self._passes + self._wait
        if not pays:
            self.name, self.policy = "none", self.build("none")
        else:
            self._trials -= 1  # the next trial asks whether this one still pays
