"""plan: what a model would do on this machine, reckoned before it is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from gmoe.experts.budget import Budget
from gmoe.experts.cost import Costs
from gmoe.experts.machine import Machine
from gmoe.experts.recorder import Recorder
from gmoe.experts.schedule import Schedule
from gmoe.experts.simulate import Groups, Replay
from gmoe.experts.trace import Header, Trace

PASSES = 96  # of a trace that are replayed
CHUNK = 512  # tokens of a prompt that run together
CONCENTRATION = 0.5  # of made-up routing: between real traces, where the hottest tenth serves 40 to 60 %


@dataclass(frozen=True)
class Speed:
    """What is expected."""

    decode: float  # tok/s
    prefill: float
    hit_rate: float
    bytes: float  # read a decoded token


@dataclass(frozen=True)
class Plan:
    """The answer; `slots` of `experts` are in memory, all of them where `whole`."""

    whole: bool
    slots: int
    experts: int
    now: Speed
    more_memory: Speed
    faster_disk: Speed
    all_in_memory: Speed


def made_up(header: Header, n_used: int, passes: int = PASSES, seed: int = 0) -> Trace:
    """Routing as concentrated as that of real models, for a model without a trace: one answer, token by token."""
    random = np.random.default_rng(seed)
    recorder = Recorder(header)
    routed = [layer for layer, size in enumerate(header.expert_bytes) if size]
    taste = {n: random.dirichlet(np.full(header.n_expert, CONCENTRATION)) for n in routed}
    last = {n: np.zeros(0, int) for n in routed}
    for step in range(passes):
        recorder.begin_step(np.zeros(1, np.int32), np.ones(1, np.uint8), np.array([step]))
        for layer in routed:
            score = np.log(taste[layer] + 1e-9) + random.gumbel(size=header.n_expert)
            score[last[layer]] += 1.0  # a third of a token's experts served the token before, as in real traces
            last[layer] = np.argsort(-score)[:n_used]
            recorder.record(layer, last[layer][None], np.full((1, n_used), 1 / n_used))
    return recorder.trace()


def plan(budget: Budget, costs: Costs, trace: Trace, kv_bytes: int, evict: str = "least_stale") -> Plan:
    """By a trace of decode passes, one at least; raises `TooSmall` (budget.py) where the budget is too small."""
    layers = len(budget.layout.layers)
    machine = costs.machine(layers, budget.fixed)
    schedule = Schedule(trace.tail(PASSES))
    experts = sum(group.experts for group in budget.groups)
    counts = [group.experts for group in budget.groups] if budget.whole else budget.counts(kv_bytes)

    def speed(counts: Sequence[int], machine: Machine) -> Speed:
        groups = [(group.layers, count) for group, count in zip(budget.groups, counts, strict=True)]
        return _speed(schedule, groups, machine, evict, counts == [group.experts for group in budget.groups])

    more = [min(group.experts, -(-count * 5 // 4)) for group, count in zip(budget.groups, counts, strict=True)]
    everything = [group.experts for group in budget.groups]
    return Plan(
        budget.whole,
        sum(counts),
        experts,
        speed(counts, machine),
        speed(more, machine),
        speed(counts, replace(machine, bandwidth=2 * machine.bandwidth, latency=machine.latency / 2)),
        speed(everything, machine),
    )


def _speed(schedule: Schedule, groups: Groups, machine: Machine, evict: str, whole: bool) -> Speed:
    """The second half of the replay counts: the first fills the pools. A prompt reads all experts that are not here."""
    header, turns = schedule.header, schedule.turns
    replay = Replay(schedule, schedule.bytes, evict, machine=machine, groups=groups)
    half = next(n for n, turn in enumerate(turns) if turn.step == turns[len(turns) // 2].step)
    first = replace(replay.feed(turns[:half]).decode)
    second = replay.feed(turns[half:]).decode
    tokens, seconds = second.tokens - first.tokens, second.seconds - first.seconds
    asked = max(second.asked - first.asked, 1)
    missed = 0.0 if whole else 1 - (second.hits - first.hits) / asked
    if whole and tokens:  # nothing is read: what the pools still had to fill is no cost
        seconds -= second.stalled - first.stalled
    used = asked / max(tokens, 1)
    routed = [size for size in header.expert_bytes if size]
    slots = {layer: count / len(layers) / header.n_expert for layers, count in groups for layer in layers}
    absent = sum(header.n_expert * size * (1 - slots.get(n, 0)) for n, size in enumerate(header.expert_bytes) if size)
    reading = 0.0 if whole else absent / machine.bandwidth
    touched = min(len(routed) * header.n_expert, CHUNK * used)
    computing = touched * machine.expert_seconds + (CHUNK * used - touched) * machine.row_seconds
    rest = len(routed) * machine.layer_seconds * max(1.0, CHUNK * machine.row_seconds / machine.expert_seconds)
    return Speed(
        decode=tokens / seconds if seconds else 0.0,
        prefill=CHUNK / (max(computing, reading) + rest),
        hit_rate=1 - missed,
        bytes=0.0 if whole else (second.bytes - first.bytes) / max(tokens, 1),
    )
