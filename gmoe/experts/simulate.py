"""The simulator: replays a routing trace through the pool and the policies themselves, against a model of time.

Time: a layer's resident experts compute while the absent ones are read, one after the other at the bandwidth given;
the layer ends when the last has come and been computed. Prefetches are read when nothing else is, and are dropped
when their layer's turn has come before they began. A pass asks a layer once for each of its distinct experts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gmoe.experts.expert_id import ExpertId
from gmoe.experts.policy import EvictionPolicy, Floats, Ids, ScoredEviction, Shape, load
from gmoe.experts.pool import SlotPool
from gmoe.experts.trace import Event, Trace, TraceError

CONTROLS = ("random", "static")
PREFILL, DECODE = 0, 1


@dataclass(frozen=True)
class Machine:
    """What things cost here."""

    bandwidth: float = 1e9  # bytes/s at which experts reach the fast tier
    expert_seconds: float = 1e-4  # to compute one expert for the rows of a decode step
    layer_seconds: float = 2e-4  # everything else of a layer


@dataclass
class Tally:
    """The counts of one phase."""

    asked: int = 0
    hits: int = 0
    late: int = 0  # of the hits: prefetched, and still on the way when asked for
    bytes: int = 0  # read, prefetched or not
    tokens: int = 0
    seconds: float = 0.0

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


class Random(EvictionPolicy):
    """Control: anybody leaves; the same seed, the same answer."""

    def __init__(self, seed: int = 0):
        self.random = np.random.default_rng(seed)
        self.residents: list[ExpertId] = []

    def hit(self, id: ExpertId) -> None:
        pass

    def insert(self, id: ExpertId) -> None:
        self.residents.append(id)

    def victim(self, pinned: Any) -> ExpertId:
        while True:
            id = self.residents[self.random.integers(len(self.residents))]
            if id not in pinned:
                return id

    def remove(self, id: ExpertId) -> None:
        self.residents.remove(id)


class Static(ScoredEviction):
    """Control: the hottest experts of the whole trace stay; the others pass through what is left."""

    def __init__(self, shape: Shape, future: Sequence[tuple[int, Sequence[int]]]):
        super().__init__(shape)
        self.count = np.zeros(shape)
        for layer, experts in future:
            self.count[layer, list(experts)] += 1

    def score(self) -> Floats:
        return self.count


def eviction(name: str, knobs: Mapping[str, Any], shape: Shape, events: Sequence[Event]) -> EvictionPolicy:
    """A policy of the folder, or a control, for this replay."""
    future = [(event.layer, _distinct(event.ids)) for event in events] if name in ("belady", "static") else []
    if name in CONTROLS:
        return Random(**knobs) if name == "random" else Static(shape, future)
    policy: EvictionPolicy = load("evict", name, knobs, shape=shape, future=future)
    return policy


class Replay:
    """One replay: a pool, its policies, and a clock."""

    def __init__(
        self,
        trace: Trace,
        budget: int,
        evict: str = "lru",
        prefetch: str = "none",
        working_set: str = "none",
        machine: Machine = Machine(),
        knobs: Mapping[str, Mapping[str, Any]] | None = None,
    ):
        """`budget` in bytes; `knobs` by kind. Raises PolicyError, or TraceError where the trace gives no sizes."""
        knobs = knobs or {}
        self.events = list(trace.events())
        self.bytes = trace.header.expert_bytes
        if any(not self.bytes[event.layer] for event in self.events):
            raise TraceError("the trace does not say how many bytes an expert has")
        shape = trace.header.n_layer, trace.header.n_expert
        policy = eviction(evict, knobs.get("evict", {}), shape, self.events)
        self.pool = SlotPool(budget, policy, lambda id: self.bytes[id.layer])
        self.prefetcher = load("prefetch", prefetch, knobs.get("prefetch"), shape=shape)
        self.working_set = load("working_set", working_set, knobs.get("working_set"), shape=shape)
        self.machine = machine
        self.report = Report(evict, prefetch, working_set, budget)
        self.kept: frozenset[ExpertId] = frozenset()
        self.queue: list[ExpertId] = []
        self.ready: dict[ExpertId, float] = {}  # prefetched and not yet asked for: when it is here
        self.now = 0.0
        self.disk_free = 0.0

    def run(self) -> Report:
        """Replay everything."""
        request = step = -1
        for event in self.events:
            tally = self.report.decode if event.phase == DECODE else self.report.prefill
            if event.request != request:
                for policy in (self.pool.evict, self.prefetcher, self.working_set):
                    policy.begin()
            if (event.request, event.step) != (request, step):
                tally.tokens += len(event.ids)
                self.plan()
            request, step = event.request, event.step
            self.layer(event, tally)
        self.report.wasted += sum(self.bytes[id.layer] for id in self.ready)
        return self.report

    def plan(self) -> None:
        """The working set may hold half of the room."""
        slots = int(self.pool.capacity / 2 / max(self.bytes))
        planned = self.working_set.plan(slots)
        self.kept = frozenset(planned)
        self.queue = [id for id in planned if id not in self.pool]

    def layer(self, event: Event, tally: Tally) -> None:
        """Serve one layer of one pass."""
        started = self.now
        ids: Ids = event.ids
        wanted = [ExpertId(event.layer, expert) for expert in _distinct(ids)]
        pinned = frozenset(wanted)
        self.work_off_queue(tally)
        self.queue = [id for id in self.queue if id.layer > event.layer]
        self.pool.evict.observe(event.layer, ids, event.weights)
        self.working_set.observe(event.layer, ids, event.weights)
        arrived = self.now
        for id in wanted:
            tally.asked += 1
            if self.pool.lookup(id) >= 0:
                tally.hits += 1
                due = self.ready.pop(id, 0.0)
                tally.late += due > self.now
                arrived = max(arrived, due)
            else:
                arrived = self.read(id, pinned, tally)
        compute = len(wanted) * self.machine.expert_seconds
        waited = arrived + self.machine.expert_seconds if arrived > self.now else self.now
        self.now = max(self.now + compute, waited) + self.machine.layer_seconds
        tally.seconds += self.now - started
        foretold = self.prefetcher.predict(event.layer, None, ids, event.weights)
        self.queue += [id for id in foretold if id not in self.pool and id not in self.queue]

    def read(self, id: ExpertId, pinned: frozenset[ExpertId], tally: Tally) -> float:
        """Read an expert as soon as the disk is free; returns when it is here."""
        self.place(id, pinned)
        tally.bytes += self.bytes[id.layer]
        self.disk_free = max(self.disk_free, self.now) + self.bytes[id.layer] / self.machine.bandwidth
        return self.disk_free

    def place(self, id: ExpertId, pinned: frozenset[ExpertId]) -> None:
        """Spare the working set where that leaves a choice, and the layer's own experts where they fit at all."""
        for spared in (pinned | self.kept, pinned, frozenset[ExpertId]()):
            try:
                evicted = self.pool.place(id, spared).evicted
            except ValueError:
                continue
            for gone in evicted:
                if self.ready.pop(gone, None) is not None:
                    self.report.wasted += self.bytes[gone.layer]
            return
        raise ValueError(f"the budget is smaller than one expert, {self.bytes[id.layer]} bytes")

    def work_off_queue(self, tally: Tally) -> None:
        """Begin the prefetches for which the disk was idle until now."""
        begun = 0
        idle_from = self.disk_free
        for id in self.queue:
            if idle_from >= self.now:
                break
            begun += 1
            if id in self.pool:
                continue
            self.place(id, frozenset(self.ready))
            tally.bytes += self.bytes[id.layer]
            idle_from += self.bytes[id.layer] / self.machine.bandwidth
            self.ready[id] = idle_from
        self.disk_free = idle_from
        del self.queue[:begun]


def _distinct(ids: Ids) -> list[int]:
    """In the order in which the tokens name them."""
    return list(dict.fromkeys(ids.ravel().tolist()))
