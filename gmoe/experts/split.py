"""The twins' part of the experts' memory: the one with which a replay of earlier routing waits least for the disk."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gmoe.experts.evict.lru import Policy as Lru
from gmoe.experts.expert_id import ExpertId, Tier
from gmoe.experts.misses import resolve
from gmoe.experts.policy import MissPolicy
from gmoe.experts.pool import SlotPool
from gmoe.experts.trace import Trace

PARTS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
PASSES = 96  # of the trace's end; the first half of them fills the slots and is not counted
UNKNOWN = 0.25  # where there is no trace

Seconds = Callable[[int], float]  # to read so many bytes as one expert


def best_part(
    trace: Trace | None,
    miss: MissPolicy,
    room: int,
    twin_bytes: list[int],
    seconds: Seconds,
    least: tuple[int, int] = (0, 0),
) -> float:
    """The part of `room` bytes, of `PARTS`, that the twins of so many `twin_bytes` by layer should have.

    A run begins with the most wanted experts in half of its slots; the least recently used leaves either pool, and
    `miss` decides as it will. Not tried is what leaves either pool less than its `least` bytes, or no room for the
    experts that a layer's tokens want together. Where nothing is known it is `UNKNOWN`, or the part nearest to it that
    leaves both pools their `least`.
    """
    lowest, highest = ((least[1] + 0.5) / max(room, 1), 1 - (least[0] + 0.5) / max(room, 1))  # half a byte to round
    unknown = min(max(UNKNOWN, lowest), highest) if lowest <= highest else UNKNOWN
    if trace is None or not len(trace):
        return unknown
    tail = trace.tail(PASSES)
    found = {}
    for part in PARTS:
        full, low = int(room * (1 - part)), int(room * part)
        if full < least[0] or low < least[1]:
            continue
        try:
            found[part] = _wait(tail, miss, full, low, twin_bytes, seconds)
        except ValueError:  # no room
            continue
    return min(found, key=lambda part: found[part], default=unknown)


def _wait(trace: Trace, miss: MissPolicy, room: int, twin_room: int, twin_bytes: list[int], seconds: Seconds) -> float:
    """Seconds of reading in the second half of the trace."""
    sizes = trace.header.expert_bytes
    full = SlotPool(room, Lru(), lambda id: sizes[id.layer])
    twins = SlotPool(twin_room, Lru(), lambda id: twin_bytes[id.layer])
    here = _Here(full, trace.header.n_expert)
    for id in _most_wanted(trace):
        if full.used + sizes[id.layer] > room // 2:
            break
        full.place(id)
    middle = int(np.median(trace.rows["step"]))
    total = 0.0
    for event in trace.events():
        wanted = [ExpertId(event.layer, e) for e in np.unique(event.ids).tolist()]
        absent = full.absent(wanted)
        served = resolve(miss, absent, event.ids, event.weights, here, None)
        low = [ExpertId(event.layer, e) for e in np.unique(served.twins).tolist() if e >= 0]
        for pool, ids, bytes in ((full, served.load, sizes), (twins, twins.absent(low), twin_bytes)):
            pinned = set(wanted if pool is full else low)
            for id in ids:
                pool.place(id, pinned)
            if event.step > middle:
                total += len(ids) * seconds(bytes[event.layer])
        for id in served.behind:
            full.place(id, {other for other in wanted if other in full})
    return total


def _most_wanted(trace: Trace) -> list[ExpertId]:
    counts = np.zeros((trace.header.n_layer, trace.header.n_expert), np.int64)
    np.add.at(counts, (trace.rows["layer"][:, None], trace.ids), 1)
    order = np.argsort(-counts, axis=None, kind="stable")[: np.count_nonzero(counts)]
    return [ExpertId(*divmod(flat, trace.header.n_expert)) for flat in order.tolist()]


class _Here:
    """What a replayed miss policy sees: a pool, and twins of everything."""

    def __init__(self, pool: SlotPool, n_expert: int):
        self.pool, self.n_expert = pool, n_expert

    def tier(self, id: ExpertId) -> Tier:
        return Tier.HOST if id in self.pool else Tier.DISK

    def resident(self, id: ExpertId) -> bool:
        return id in self.pool

    def has_twin(self, id: ExpertId) -> bool:
        return True

    def arriving(self, id: ExpertId) -> bool:
        return False

    def here(self, layer: int) -> NDArray[np.bool_]:
        return np.array([ExpertId(layer, e) in self.pool for e in range(self.n_expert)])
