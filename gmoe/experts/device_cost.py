"""What an expert costs that is not on the device: to copy it there, or to compute it where it lies."""

import random
import time
from collections.abc import Callable, Sequence
from statistics import median

from gmoe.experts.device import Device
from gmoe.experts.device_store import DeviceStore
from gmoe.experts.expert_id import ExpertId, Tier
from gmoe.experts.measure import seconds_of_rows
from gmoe.experts.store import ExpertStore
from gmoe.experts.transfer import State
from gmoe.experts.upload import BUFFERS
from gmoe.kernels.ops import Activations

WEIGHT = 0.1  # of one observation in what is known
MOST = 4.0  # times what was expected: what an observation may say at most
ROWS = 16
SAMPLE = 12  # experts that are copied and computed
LINK_BYTES = 16 << 20  # that are copied to know the link


class DeviceCosts:
    """Running means, in seconds; `disk` is what the tier below takes to read an expert.

    `byte` is what a copy takes for a byte while it runs, and follows the link; 0.0: that is not known.
    """

    def __init__(self, copy: float, one: float, more: float, disk: float = 0.0, byte: float = 0.0):
        self.copy, self.one, self.more, self.disk, self.byte = copy, one, more, disk, byte

    def load(self, tier: Tier) -> float:
        """Of one expert, to the device."""
        return self.copy + (self.disk if tier is Tier.DISK else 0.0)

    def cpu(self, tokens: int) -> float:
        """Of one expert for so many tokens."""
        return self.one + (tokens - 1) * self.more

    def computed(self, tokens: int, seconds: float) -> None:
        """One expert took so long on the CPU for so many tokens."""
        self.served(1, tokens, seconds)

    def served(self, experts: int, rows: int, seconds: float) -> None:
        """So many experts took so long on the CPU for so many rows in all."""
        factor = _factor(seconds, experts * self.one + (rows - experts) * self.more, WEIGHT)
        self.one, self.more = self.one * factor, self.more * factor

    def copied(self, nbytes: int, seconds: float, weight: float = WEIGHT) -> None:
        """A copy to the device took so long, once its turn had come."""
        if self.byte > 0:
            factor = _factor(seconds, nbytes * self.byte, weight)
            self.copy, self.byte = self.copy * factor, self.byte * factor


def _factor(seconds: float, expected: float, weight: float) -> float:
    return 1 - weight + weight * min(seconds / max(expected, 1e-9), MOST)


def link_rate(device: Device, clock: Callable[[], float] = time.perf_counter) -> float:
    """Bytes a second from pinned memory to a device."""
    source, target = device.pinned(LINK_BYTES), device.empty(LINK_BYTES)
    device.upload(target, source, None).synchronize()
    began = clock()
    device.upload(target, source, None).synchronize()
    return LINK_BYTES / max(clock() - began, 1e-9)


def measure(
    store: DeviceStore,
    activations: Activations,
    disk: float = 0.0,
    seconds: float = 0.1,
    clock: Callable[[], float] = time.perf_counter,
) -> DeviceCosts:
    """Copies a few absent experts, a few at a time as a layer does, and computes a few on the CPU.

    The store has slots, and keeps what was copied; `disk` is what it takes to read an expert, and is not measured.
    Where no copy comes through, that is the error.
    """
    ids = [ExpertId(layer, expert) for layer in store.layout.layers for expert in range(store.layout.n_expert)]
    some = random.Random(0).sample(ids, len(ids))
    absent = _near(store.below, [id for id in some if not store.resident(id)])
    copies: list[float] = []
    heard: list[float] = []  # seconds a byte
    before, store.copied = store.copied, lambda nbytes, seconds: heard.append(seconds / nbytes)
    failed: OSError | None = None
    for at in range(0, len(absent), BUFFERS):
        began = clock()
        begun = [store.fetch(id, ()) for id in absent[at : at + BUFFERS] if not store.resident(id)]
        flying = [ticket for ticket in begun if ticket is not None and not ticket.final]
        while flying:
            arrived = store.wait(flying)
            flying = [ticket for ticket in flying if ticket not in arrived]
        store.device.synchronize()
        copied = sum(ticket is not None and ticket.state is State.DONE for ticket in begun)
        if copied:
            copies.append((clock() - began) / copied)
        failed = next((ticket.error for ticket in begun if ticket is not None and ticket.error), failed)
    store.poll()
    store.copied = before
    if not copies:
        raise failed or OSError("no expert could be copied to the device")
    below = store.below
    layer = absent[-1].layer  # of it one at least is in the tier below
    here = [e for e in range(store.layout.n_expert) if below.resident(ExpertId(layer, e))][:SAMPLE]
    one = seconds_of_rows(below.table(layer), here, 1, activations, seconds / 2, clock)
    many = seconds_of_rows(below.table(layer), here, ROWS, activations, seconds / 2, clock)
    more, byte = max(0.0, (many - one) / (ROWS - 1)), median(heard) if heard else 0.0
    return DeviceCosts(median(copies), one, more, disk, byte)


def _near(below: ExpertStore, ids: Sequence[ExpertId]) -> Sequence[ExpertId]:
    """Some of these experts, brought into host memory, so that only their way to the device is measured."""
    if below.whole:
        return ids[:SAMPLE]
    for id in ids[: min(SAMPLE, below.slots)]:
        ticket = None if below.resident(id) else below.fetch(id, ())
        if ticket is not None:
            below.wait([ticket])
    return [id for id in ids if below.resident(id)][:SAMPLE] or ids[:SAMPLE]
