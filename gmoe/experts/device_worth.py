"""Worth: whether experts are worth copying to a device, or are computed where they lie; decided for whole requests."""

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from gmoe.experts.auto import FIRST
from gmoe.experts.chooser import PASSES, sample
from gmoe.experts.device_cost import WEIGHT, DeviceCosts
from gmoe.experts.device_dispatch import DeviceDispatch
from gmoe.experts.device_warm import Warm
from gmoe.experts.expert_id import Tier
from gmoe.experts.policy import Ids
from gmoe.experts.schedule import Schedule
from gmoe.experts.simulate import DECODE, Groups, Replay, Tally
from gmoe.experts.trace import Trace

GAIN = 0.8  # of the CPU's seconds: what copying may take at most where it begins
LOSS = 1.0  # where it takes more, it ends
COUNTED = 4096  # experts asked for, after which their misses are believed
REPLAYED = 64  # requests between two replays of what has run, at first fewer: they take as long as a few steps
DOUBT = 8  # times as long until the next, where experts were copied and it did not pay
SURE = 2.0  # standard errors
PROBE = 0.5  # weight of a copy in what is known of the link, where there are few
NEVER = 1 << 30


class Way(NamedTuple):
    """What a request's experts meet: copied are those of a single token if `tokens`, and of `prompts` or more."""

    tokens: bool
    prompts: int  # at least 2; NEVER: none


COPY, COMPUTE = Way(True, 2), Way(False, NEVER)


class Rates(NamedTuple):
    """Parts of the experts asked for that are not there: by single tokens, and by several tokens of a request."""

    tokens: float
    prompts: float


class Rows(Protocol):
    """A pass that comes: whether a request is seen for the first time, and the way and the rows of each."""

    @property
    def begins(self) -> bool: ...

    @property
    def ways(self) -> Sequence[bytes]: ...

    @property
    def counts(self) -> Sequence[int]: ...


def part(costs: DeviceCosts, missed: float, rows: int, experts: int, used: int, away: float = 0.0) -> float:
    """Seconds of copying for so many rows of a request, as a part of what the CPU takes to compute all their experts.

    `used` of `experts` are chosen for a row, and all alike; of those in neither memory, the part `away`, both wait.
    """
    distinct = experts * (1 - (1 - used / experts) ** rows)
    disk = away * (costs.load(Tier.DISK) - costs.load(Tier.HOST))
    cpu = costs.one + (rows * used / distinct - 1) * costs.more
    return missed * (costs.load(Tier.HOST) + disk) / max(cpu + disk, 1e-12)


def weigh(parts: Callable[[int], float], before: Way) -> Way:
    """What pays by `parts` of so many rows; as `before` where the difference is small."""

    def least(bound: float) -> int:
        return next((n for n in (1 << power for power in range(1, 10)) if parts(n) <= bound), NEVER)

    tokens = parts(1) <= (LOSS if before.tokens else GAIN)
    prompts = before.prompts if least(LOSS) <= before.prompts <= least(GAIN) else least(GAIN)
    return Way(tokens, prompts)


def foretell(trace: Trace, groups: Groups, prompts: int, evict: str = FIRST) -> tuple[float | None, float | None]:
    """`Rates` with so many slots a group, by the second half of the last passes of a trace; None: nothing is known.

    Only prompts of so many tokens go through the slots. Of little that is known, the upper end of what it may mean.
    """
    schedule, groups = sample(Schedule(trace.tail(PASSES)), groups)
    turns = [turn for turn in schedule.turns if turn.phase == DECODE or len(turn.ids) >= prompts]
    replay, half = Replay(schedule, schedule.bytes, evict, groups=groups), len(turns) // 2
    report = replay.feed(turns[:half])
    before = [(tally.asked, tally.hits) for tally in (report.decode, report.prefill)]
    report = replay.feed(turns[half:])

    def rate(tally: Tally, before: tuple[int, int]) -> float | None:
        asked = tally.asked - before[0]
        if not asked:
            return None
        missed = 1 - (tally.hits - before[1]) / asked
        return min(1.0, missed + SURE * (missed * (1 - missed) / asked) ** 0.5)

    return rate(report.decode, before[0]), rate(report.prefill, before[1])


class Worth:
    """A listener of `Steps`: tells the dispatch before each pass whose experts are computed on the CPU.

    A request keeps the way with which it began. `measure` is asked for the costs when first some experts do not fit;
    what copies and the CPU take while running corrects them. Copying begins when the experts that are there now make it
    pay; where those that could be there would, slots are filled beside the CPU's work until they do.
    """

    def __init__(
        self,
        dispatch: DeviceDispatch,
        used: int,
        measure: Callable[[], DeviceCosts],
        notices: list[str],
        trace: Callable[[], Trace | None] = lambda: None,
    ):
        dispatch.begins, dispatch.served = self.begin, self._served
        self.dispatch, self.store, self.used, self.notices = dispatch, dispatch.fast, used, notices
        self.way = COPY  # of the requests that come
        self.costs: DeviceCosts | None = None
        self.rates = self.hoped = Rates(0.0, 0.0)  # of what is there now, and of filled slots
        self.warm = Warm(self.store)
        self._soon = False  # single tokens' experts are copied when slots are filled
        self.store.copied = self._copied
        self._measure, self._trace = measure, trace
        self._named = {b"": COPY}  # what requests were told, whose way it is; those of no admission have the latest
        self._running = False
        self._waited, self._wait = 0, 1  # requests since the last replay, and until the next
        self._slots = -1  # for which `rates` hold
        self._kind: int | None = None  # of the pass that ran: 0 single tokens, 1 several of a request; None: aside
        self._kind_aside = 0  # of its rows whose experts the CPU computes
        self._seen = (0, 0)  # asked for and missed, ever
        self._counted = [[0, 0], [0, 0]]  # likewise, since the rate of a kind was last believed
        self._said = ""

    def __call__(self, rows: Rows) -> None:
        """The pass that comes."""
        self._count()
        self._running = True
        if rows.begins and b"" in rows.ways:
            self.warm.begin()
            self.decide()
        ways = [self._named.get(name, self.way) if name else self.way for name in rows.ways]
        copied = [way.tokens if n == 1 else n >= way.prompts for way, n in zip(ways, rows.counts, strict=True)]
        self.dispatch.aside = None if all(copied) else np.repeat([not yes for yes in copied], rows.counts)
        some, aside = (
            [n for n, yes in zip(rows.counts, copied, strict=True) if yes == which] for which in (True, False)
        )
        self._kind = int(max(some) > 1) if some else None
        self._kind_aside = int(max(aside, default=1) > 1)

    def begin(self) -> bytes:
        """A request comes: the way in which it will be computed, by name."""
        self.warm.begin()
        try:
            self.decide()
        except Exception as error:  # an answer does not fail for a measurement
            logging.getLogger("gmoe").warning(f"whether copies pay could not be measured: {error}")
        name = f"{self.way.tokens} {self.way.prompts}".encode()
        self._named[name] = self.way
        return name

    def decide(self, trace: Trace | None = None) -> None:
        """Choose the way of the requests that come; `trace` is what earlier runs know."""
        before, filled = self.way, self.warm.filling
        if self.store.whole:
            way, self.warm.filling = COPY, False
        else:
            if self.costs is None:
                self.costs, before = self._measure(), COMPUTE
            self._guess(trace, before)
            way = weigh(lambda rows: self._part(self.rates, rows), before)
            hoped = weigh(lambda rows: self._part(self.hoped, rows), way)
            self._soon = hoped.tokens and not way.tokens
            self.warm.filling = self._soon or hoped.prompts < way.prompts
        if (way, self.warm.filling) == (self.way, filled):
            return
        if before.tokens and not way.tokens:
            self._wait = min(REPLAYED, DOUBT * self._wait)  # a replay had promised too much
        self.way = way
        self._say()

    def _part(self, rates: Rates, rows: int) -> float:
        store, costs = self.store, self.costs
        assert costs is not None
        below, layout = store.below, store.layout
        away = 0.0 if below.whole else max(0.0, 1 - below.slots / (len(layout.layers) * layout.n_expert))
        missed = rates.tokens if rows == 1 else rates.prompts
        return part(costs, missed, rows, layout.n_expert, self.used, away)

    def _guess(self, trace: Trace | None, before: Way) -> None:
        """Rates of what is not counted: now by who is there, of filled slots by a replay or the share that fits."""
        store = self.store
        if store.slots != self._slots:
            self._slots = store.slots
            everything = sum(group.experts for group in store.groups)
            absent, missing = 1 - store.slots / everything, 1 - int((store.slot_of >= 0).sum()) / everything
            self.rates, self.hoped, self._counted = Rates(missing, missing), Rates(absent, absent), [[0, 0], [0, 0]]
            self._waited, self._wait = 0 if trace is None else 1, 1
        if before.tokens or self._waited < self._wait:
            self._waited += 1
            return
        self._waited, self._wait = 0, min(REPLAYED, 2 * self._wait)
        trace = trace or self._trace()
        groups = [(group.layers, count) for group, count in zip(store.groups, store.counts, strict=True)]
        if trace is not None and len(trace):
            found = zip(foretell(trace, groups, before.prompts), self.hoped, strict=True)
            self.hoped = Rates(*(old if new is None else new for new, old in found))

    def _count(self) -> None:
        """The pass that ran has told what it missed; what came too late counts as well."""
        stats = self.store.stats
        seen = stats.hits + stats.misses, stats.misses + stats.late
        if self._kind is not None and not self.store.whole:
            self._believe(self._kind, seen[0] - self._seen[0], seen[1] - self._seen[1])
        self._seen = seen

    def _believe(self, kind: int, asked: int, missed: int) -> None:
        """So many of those that a kind of pass asked for were not there."""
        counted = self._counted[kind]
        counted[0] += asked
        counted[1] += missed
        if counted[0] >= COUNTED:
            self.rates = self.rates._replace(**{Rates._fields[kind]: counted[1] / counted[0]})
            counted[:] = 0, 0

    def _served(self, layer: int, ids: Ids, seconds: float) -> None:
        """The CPU has computed rows of a layer."""
        if self.costs is None or self.store.whole:
            return
        experts = np.unique(ids).tolist()
        if self.store.below.whole:  # else reads from the disk are in it
            self.costs.served(len(experts), ids.size, seconds)
        self._believe(self._kind_aside, len(experts), self.warm.layer(layer, experts, seconds))

    def _copied(self, nbytes: int, seconds: float) -> None:
        """A copy is through."""
        if self.costs is not None:
            few = not self.way.tokens and not self.warm.filling
            self.costs.copied(nbytes, seconds, PROBE if few else WEIGHT)

    def _say(self) -> None:
        """The last word replaces the one before; none where all is as ever."""
        before, self._said = self._said, ""
        if before in self.notices:
            self.notices.remove(before)
        if self.costs is None or self.store.whole or (self.way == COPY and not before):
            return
        self._said = sentence(self.way, self.costs, self.hoped, str(self.store.device.torch), self._soon)
        self.notices.append(self._said)
        if self._running:  # while loading, notices are enough
            logging.getLogger("gmoe").warning(self._said)


def sentence(way: Way, costs: DeviceCosts, rates: Rates, device: str, soon: bool) -> str:
    """What is decided, and the numbers why."""
    numbers = f"copying an expert takes {1e3 * costs.copy:.2g} ms, the CPU {1e3 * costs.one:.2g} ms for a token"
    numbers += f", and {1 - rates.tokens:.0%} of those wanted would be there"
    many = f"prompts of fewer than {way.prompts} tokens"
    if soon:
        return f"experts are computed on the CPU until enough of them are on {device}: {numbers}"
    if way == COPY:
        return f"experts are copied to {device}: {numbers}"
    if way.tokens:
        return f"experts of {many} are computed on the CPU, others are copied to {device}: {numbers}"
    least = "" if way.prompts == NEVER else f", but those of prompts of {way.prompts} tokens and more"
    said = f"the expert cache on {device} is off, experts are computed on the CPU{least}: {numbers}"
    return f"{said}; --miss balance does both"
