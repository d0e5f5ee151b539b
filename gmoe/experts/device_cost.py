"""What an expert costs that is not on the device: to copy it there, or to compute it where it lies."""

import random
import time
from statistics import median

from gmoe.experts.device_store import DeviceStore
from gmoe.experts.expert_id import ExpertId, Tier
from gmoe.experts.measure import seconds_of_rows
from gmoe.kernels.ops import Activations

WEIGHT = 0.1  # of one observation in what is known
ROWS = 16
SAMPLE = 12  # experts that are copied and computed


class DeviceCosts:
    """Running means, in seconds; `disk` is what the tier below takes to read an expert."""

    def __init__(self, copy: float, one: float, more: float, disk: float = 0.0):
        self.copy, self.one, self.more, self.disk = copy, one, more, disk

    def load(self, tier: Tier) -> float:
        """Of one expert, to the device."""
        return self.copy + (self.disk if tier is Tier.DISK else 0.0)

    def cpu(self, tokens: int) -> float:
        """Of one expert for so many tokens."""
        return self.one + (tokens - 1) * self.more

    def computed(self, tokens: int, seconds: float) -> None:
        """One expert took so long on the CPU for so many tokens."""
        ratio = seconds / max(self.cpu(tokens), 1e-9)
        self.one *= 1 - WEIGHT + WEIGHT * ratio
        self.more *= 1 - WEIGHT + WEIGHT * ratio


def measure(store: DeviceStore, activations: Activations, disk: float = 0.0, seconds: float = 0.1) -> DeviceCosts:
    """Copies a few experts, computes a few on the CPU; the store has slots, and keeps what was copied."""
    ids = [ExpertId(layer, expert) for layer in store.layout.layers for expert in range(store.layout.n_expert)]
    some = random.Random(0).sample(ids, min(SAMPLE, len(ids)))
    copies = []
    for id in some:
        began = time.perf_counter()
        ticket = store.fetch(id, ())
        if ticket is not None:
            store.wait([ticket])
            store.device.synchronize()
            copies.append(time.perf_counter() - began)
    below = store.below
    layer = some[-1].layer  # of it one at least is in the tier below
    here = [e for e in range(store.layout.n_expert) if below.resident(ExpertId(layer, e))][:SAMPLE]
    one = seconds_of_rows(below.table(layer), here, 1, activations, seconds / 2)
    many = seconds_of_rows(below.table(layer), here, ROWS, activations, seconds / 2)
    return DeviceCosts(median(copies), one, max(0.0, (many - one) / (ROWS - 1)), disk)
