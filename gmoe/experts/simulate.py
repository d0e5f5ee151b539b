"""The simulator: replays a routing trace through the pool and the policies themselves, against a model of time.

Time: a layer's resident experts compute while the absent ones are read, one after the other at the bandwidth given;
the layer ends when the last has come and been computed. Prefetches are read when nothing else is, and are dropped
when their layer's turn has come before they began. A pass asks a layer once for each of its distinct experts.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gmoe.experts.controls import eviction
from gmoe.experts.evict.lru import Policy as Lru
from gmoe.experts.expert_id import ExpertId, Tier
from gmoe.experts.machine import Machine
from gmoe.experts.policy import EvictionPolicy, PolicyError, Prefetcher, WorkingSet, load, real
from gmoe.experts.pool import SlotPool
from gmoe.experts.schedule import Schedule, Turn

PREFILL, DECODE = 0, 1
NONE: frozenset[ExpertId] = frozenset()
Knobs = Mapping[str, Mapping[str, Any]]
Groups = Sequence[tuple[Collection[int], int]]  # layers that share a pool, and its slots


@dataclass
class Tally:
    """The counts of one phase."""

    asked: int = 0
    hits: int = 0
    late: int = 0  # of the hits: prefetched, and still on the way when asked for
    bytes: int = 0  # read, prefetched or not
    tokens: int = 0
    seconds: float = 0.0
    stalled: float = 0.0  # of the seconds: compute waited for reads

    @property
    def hit_rate(self) -> float:
        """Of 1; nothing asked is all hit."""
        return self.hits / self.asked if self.asked else 1.0

    @property
    def tokens_per_second(self) -> float:
        """Predicted."""
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclass
class Report:
    """What one policy did with one budget."""

    evict: str
    prefetch: str
    working_set: str
    budget: int  # bytes
    prefill: Tally = field(default_factory=Tally)
    decode: Tally = field(default_factory=Tally)
    wasted: int = 0  # bytes prefetched and never asked for


class Replay:
    """One replay: pools, their policies, and a clock; to policies it is the `Residency` that a run's store would be."""

    def __init__(
        self,
        schedule: Schedule,
        budget: int,
        evict: str = "lru",
        prefetch: str = "none",
        working_set: str = "none",
        machine: Machine | None = None,
        knobs: Knobs | None = None,
        groups: Groups | None = None,
    ):
        """`budget` in bytes, `knobs` by kind; `groups`: pools of equal slots instead, as in a run.

        Raises PolicyError, or ValueError where the budget is less than one expert.
        """
        knobs = knobs or {}
        self.machine = machine = machine or Machine()
        self.schedule = schedule
        self.bytes = schedule.header.expert_bytes
        self.routed = {layer for layer, size in enumerate(self.bytes) if size}
        largest = max((self.bytes[turn.layer] for turn in schedule.turns), default=1)
        if budget < largest:
            raise ValueError(f"the budget is smaller than one expert, {largest} bytes")
        if machine.host and machine.host < largest:
            raise ValueError(f"the host memory is smaller than one expert, {largest} bytes")
        given: dict[str, Any] = {"shape": schedule.shape, "matrices": None, "residency": self}
        self.pools = self._pools(budget, groups, lambda: eviction(evict, knobs.get("evict", {}), schedule, given))
        self.evicts = [pool.evict for pool in dict.fromkeys(self.pools)]
        self.prefetcher: Prefetcher = load("prefetch", prefetch, knobs.get("prefetch"), **given)
        self.working_set: WorkingSet = load("working_set", working_set, knobs.get("working_set"), **given)
        self.slots = sum(count for _, count in groups) if groups else budget // largest
        self.foretells, self.keeps = prefetch != "none", working_set != "none"
        self.host = SlotPool(machine.host, Lru(), self._size) if machine.host else None
        self.report = Report(evict, prefetch, working_set, budget)
        self.kept = NONE
        self.foretold: dict[int, frozenset[ExpertId]] = {}  # by layer, until that comes
        self.queue: list[ExpertId] = []
        self.ready: dict[ExpertId, float] = {}  # prefetched and not yet asked for: when it is here
        self._request = self._step = -1
        self.now = 0.0
        self.disk_free = 0.0

    def _size(self, id: ExpertId) -> int:
        return self.bytes[id.layer]

    def _real(self, ids: Iterable[ExpertId]) -> Iterable[ExpertId]:
        """Those that there are, as a run takes them."""
        return real(ids, self.routed, self.schedule.shape[1])

    def _pools(self, budget: int, groups: Groups | None, policy: Callable[[], EvictionPolicy]) -> list[SlotPool]:
        """The pool of each layer."""
        if groups is None:
            return [SlotPool(budget, policy(), self._size)] * len(self.bytes)
        pools = [(layers, SlotPool(slots, policy())) for layers, slots in groups]
        of = {layer: pool for layers, pool in pools for layer in layers}
        return [of.get(layer, pools[0][1]) for layer in range(len(self.bytes))]

    def tier(self, id: ExpertId) -> Tier:
        """HOST where it is resident."""
        return Tier.HOST if self.resident(id) else Tier.DISK

    def resident(self, id: ExpertId) -> bool:
        """Whether it can be computed now."""
        return id in self.pools[id.layer] and not self.arriving(id)

    def arriving(self, id: ExpertId) -> bool:
        """Whether it is on its way."""
        return self.ready.get(id, 0.0) > self.now

    def has_twin(self, id: ExpertId) -> bool:
        """There are none."""
        return False

    def here(self, layer: int) -> NDArray[np.bool_]:
        """Which experts of a layer are resident, [E]."""
        return np.array([self.resident(ExpertId(layer, expert)) for expert in range(self.schedule.shape[1])])

    def run(self) -> Report:
        """Replay everything."""
        self.feed(self.schedule.turns)
        self.report.wasted += sum(self.bytes[id.layer] for id in self.ready)
        return self.report

    def feed(self, turns: Iterable[Turn]) -> Report:
        """Replay these, which follow those replayed before; the report so far."""
        for turn in turns:
            tally = self.report.decode if turn.phase == DECODE else self.report.prefill
            if turn.step != self._step or turn.request != self._request:
                if turn.request != self._request:
                    self.begin(self.schedule.header.task(turn.request))
                self._step, self._request = turn.step, turn.request
                tally.tokens += len(turn.ids)
                tally.seconds += self.machine.step_seconds
                self.now += self.machine.step_seconds
                if self.keeps:
                    self.plan()
            self.layer(turn, tally)
        return self.report

    def begin(self, task: str = "") -> None:
        """A new request."""
        for evict in self.evicts:
            evict.begin()
        self.prefetcher.begin()
        self.working_set.begin(task)

    def plan(self) -> None:
        """The working set may hold half of the room."""
        planned = self.working_set.plan(self.slots // 2)
        self.kept = frozenset(self._real(planned))
        self.queue = [id for id in self._real(planned) if id not in self.pools[id.layer]]

    def layer(self, turn: Turn, tally: Tally) -> None:
        """Serve one layer of one pass."""
        started, pool, wanted, machine = self.now, self.pools[turn.layer], turn.wanted, self.machine
        if self.queue:
            self.work_off_queue(tally)
            self.queue = [id for id in self.queue if id.layer > turn.layer]
        self.foretold.pop(turn.layer, None)
        for evict in self.evicts:
            evict.observe(turn.layer, turn.ids, turn.weights, turn.probabilities)
        if self.keeps:
            self.working_set.observe(turn.layer, turn.ids, turn.weights, turn.probabilities)
        arrived = started
        absent = pool.absent(wanted)
        if self.ready:
            for id in turn.pinned & self.ready.keys():
                due = self.ready.pop(id)
                tally.late += due > started
                arrived = max(arrived, due)
        for id in absent:
            self.place(id, turn.pinned)
            arrived = self.read(id, tally)
        tally.asked += len(wanted)
        tally.hits += len(wanted) - len(absent)
        compute = len(wanted) * machine.expert_seconds + (turn.ids.size - len(wanted)) * machine.row_seconds
        end = started + compute
        if arrived > started and arrived + machine.expert_seconds > end:
            tally.stalled += arrived + machine.expert_seconds - end
            end = arrived + machine.expert_seconds
        self.now = end + machine.layer_seconds
        tally.seconds += self.now - started
        if self.foretells:
            told = self.prefetcher.predict(turn.layer, None, turn.ids, turn.weights, turn.probabilities)
            queued, foretold = set(self.queue), list(self._real(told))
            for id in foretold:
                self.foretold[id.layer] = self.foretold.get(id.layer, NONE) | {id}
            self.queue += [id for id in foretold if id not in self.pools[id.layer] and id not in queued]

    def read(self, id: ExpertId, tally: Tally) -> float:
        """Read an expert as soon as the disk is free; returns when it is here."""
        size = self.bytes[id.layer]
        tally.bytes += size
        self.disk_free = max(self.disk_free, self.now + self.machine.latency) + self._seconds(id, size)
        return self.disk_free

    def _seconds(self, id: ExpertId, size: int) -> float:
        """What bringing it here takes, once it begins."""
        if self.host is None:
            return size / min(self.machine.link, self.machine.bandwidth)
        if self.host.lookup(id) >= 0:
            return size / self.machine.link
        self.host.place(id)
        return size / min(self.machine.link, self.machine.bandwidth)

    def place(self, id: ExpertId, pinned: frozenset[ExpertId]) -> None:
        """Spare the working set and what was foretold where that leaves a choice, the layer's own where they fit."""
        pool = self.pools[id.layer]
        choices = [pinned, NONE]
        if self.kept or self.foretold:
            kept = pinned | self.kept
            choices = [kept.union(*self.foretold.values()), kept, *choices]
        for spared in choices:
            try:
                evicted = pool.place(id, spared).evicted
            except PolicyError:
                raise
            except ValueError:
                continue
            for gone in evicted:
                if self.ready.pop(gone, None) is not None:
                    self.report.wasted += self.bytes[gone.layer]
            return

    def work_off_queue(self, tally: Tally) -> None:
        """Begin the prefetches for which the disk was idle until now."""
        begun = 0
        idle_from = self.disk_free
        for id in self.queue:
            if idle_from >= self.now:
                break
            begun += 1
            if id in self.pools[id.layer]:
                continue
            self.place(id, frozenset(self.ready))
            tally.bytes += self.bytes[id.layer]
            idle_from += self._seconds(id, self.bytes[id.layer])
            self.ready[id] = idle_from
        self.disk_free = max(idle_from, self.disk_free)
        del self.queue[:begun]


def equal_slots(schedule: Schedule, budget: int) -> Groups:
    """How a run shares a budget out: to each size of expert the same part of its experts, one slot at least."""
    sizes = schedule.header.expert_bytes
    share = min(1.0, budget / schedule.bytes)
    layers = {size: [n for n, other in enumerate(sizes) if other == size] for size in dict.fromkeys(sizes) if size}
    return [(of, max(1, int(share * len(of) * schedule.header.n_expert))) for of in layers.values()]
