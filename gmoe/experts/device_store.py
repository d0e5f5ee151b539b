"""DeviceStore: the experts' fast tier on a device, above the store of the host."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gmoe.experts.device import Device, out_of_memory
from gmoe.experts.device_slots import DeviceArena, device_groups
from gmoe.experts.expert_id import ExpertId, Tier
from gmoe.experts.policy import EvictionPolicy
from gmoe.experts.slots import Group
from gmoe.experts.store import ExpertStore
from gmoe.experts.upload import Upload
from gmoe.kernels.ops import ExpertBank, dequantize

SHRINK = 0.75  # of the slots remain where the device's memory ran out


class DeviceStore(ExpertStore):
    """Banks of slots and, on the device as well, a table of who lies where; `below` feeds it.

    `whole`: every expert is on the device, and nothing needs to be asked.
    """

    def __init__(self, below: ExpertStore, device: Device):
        super().__init__(below.layout)
        self.below, self.device = below, device
        self.groups, self._where = device_groups(below.layout)
        shape = max(below.layout.layers, default=-1) + 1, max(below.layout.n_expert, 1)
        self.slot_of = np.full(shape, -1, np.int32)  # by layer and expert
        self.table_of_slots = device.send(torch.from_numpy(self.slot_of.copy()))  # the same on the device
        self._biases = {layer: self._biases_of(layer) for layer in below.layout.layers}
        self._banks: dict[int, ExpertBank] = {}
        self._groups: Sequence[Group] = []
        self._counts: Sequence[int] = []
        self.copied: Callable[[int, float], None] = lambda nbytes, seconds: None  # hears what copies took
        self.given_back = 0  # bytes of slots, where a pass found too little memory

    def settle_on(self, counts: Sequence[int], evict: Callable[[], EvictionPolicy]) -> None:
        """Take `counts[n]` slots of each group and, where all experts fit, fill them.

        torch.OutOfMemoryError where there is not the memory, and nothing is taken then.
        """
        arena = DeviceArena(self.device, self.groups, counts)
        self.device.synchronize()  # what had this memory before may still be at work
        largest = max((group.slot_bytes for group in self.groups), default=1)
        self._upload = Upload(self.device, self.below, largest, lambda nbytes, seconds: self.copied(nbytes, seconds))
        self._open(self.groups, counts, self._where, evict, self._upload, arena)
        self._banks = {
            layer: arena.bank(
                self._group_of[layer], self.table(layer), self._where[ExpertId(layer, 0)].starts, self._biases[layer]
            )
            for layer in self.layout.layers
        }
        if all(count >= group.experts for count, group in zip(counts, self.groups, strict=True)):
            self._fill()

    def settle_within(self, counts: Sequence[int], evict: Callable[[], EvictionPolicy]) -> list[int]:
        """The same with as many slots as there is memory for, and which; `DeviceError` where not for one a group."""
        counts = list(counts)
        while True:
            try:
                self.settle_on(counts, evict)
                return counts
            except torch.OutOfMemoryError:
                pass  # only behind this what was taken is let go
            self.device.give_back()
            if all(count == 1 for count in counts):
                raise out_of_memory(self.device, "taking slots for the experts")
            counts = _fewer(counts)

    def shrink(self) -> bool:
        """Give part of the slots back to the device, all experts of which leave; False where only one a group is left.

        Called between passes, or where a pass has failed and will be repeated. Twins give back as large a part.
        """
        gave = isinstance(self.twin, DeviceStore) and self.twin.shrink()
        if all(count == 1 for count in self._counts):
            return gave
        before = self.nbytes
        self.resettle(_fewer(self._counts))
        self.given_back += before - self.nbytes
        return True

    def resettle(self, counts: Sequence[int]) -> None:
        """Take other numbers of slots in place of these, all experts of which leave; copies of some begin again.

        Called between passes. Policies keep what they know. `DeviceError` where one a group does not fit.
        """
        for hear in self.moving:
            hear()
        if not self.whole:
            self.settle()
            self.transfer.close()
        newest = [id for pool in self._pools for id in reversed(list(pool))]
        for pool in self._pools:
            for id in list(pool):
                pool.remove(id)
        kept = [pool.evict for pool in self._pools]
        self.device.synchronize()
        self._banks, self._arena = {}, None
        self.slot_of[:] = -1
        self.table_of_slots.fill_(-1)
        self.device.give_back()
        self.whole = False
        self.settle_within(counts, iter(kept).__next__)
        self.prefetch(newest, ())

    @property
    def nbytes(self) -> int:
        """Bytes of the slots; 0 where there was no memory for any."""
        if not self._banks:
            return 0
        return sum(count * group.slot_bytes for count, group in zip(self._counts, self._groups, strict=True))

    @property
    def counts(self) -> Sequence[int]:
        """Slots of each group."""
        return self._counts

    def bank(self, layer: int) -> ExpertBank:
        """A layer's experts as the kernels find them."""
        if layer not in self._banks:
            raise out_of_memory(self.device, "answering before, and has no place for experts any more")
        return self._banks[layer]

    def slots_by_id(self, layer: int) -> Tensor:
        """int32 [E] on the device: where each expert lies; -1: absent."""
        return self.table_of_slots[layer]

    def read(self, layer: int, experts: Iterable[int]) -> None:
        """Kernels that read these resident experts have been launched: their slots change only afterwards."""
        self._arena.read(self._group_of[layer], [int(self.slot_of[layer, expert]) for expert in experts])

    def close(self) -> None:
        """End the copies, then the tier below."""
        if self.twin is not None:
            self.twin.close()
        if self._banks:
            self.transfer.close()
        self.below.close()

    def begin(self) -> None:
        super().begin()
        if not self.below.whole:
            self.below.begin()

    def resident(self, id: ExpertId) -> bool:
        return bool(self.slot_of[id] >= 0)

    def tier(self, id: ExpertId) -> Tier:
        return Tier.GPU if self.resident(id) else self.below.tier(id)

    def here(self, layer: int) -> NDArray[np.bool_]:
        return np.asarray(self.slot_of[layer] >= 0)

    def lookup(self, layer: int, experts: Iterable[int]) -> tuple[list[ExpertId], list[ExpertId]]:
        self._upload.poll()
        return super().lookup(layer, experts)

    def touch(self, layer: int, experts: Iterable[int]) -> list[ExpertId]:
        """Those that have no slot; counted nowhere, but eviction policies hear of the others."""
        self.poll()
        ids = [ExpertId(layer, expert) for expert in experts]
        self._unused.difference_update(ids)
        return self._pools[self._group_of[layer]].absent(ids)

    def poll(self) -> None:
        """What has come is here, and `copied` has heard of it."""
        self._upload.poll()
        self._land([ticket for ticket in self._flying.values() if ticket.final])

    @property
    def flying(self) -> int:
        """Experts on their way here."""
        return len(self._flying)

    @property
    def staging_seconds(self) -> float:
        """What the host has spent on handing experts to copies, since there are these slots."""
        return self._upload.staging_seconds

    def _arrive(self, id: ExpertId, slot: int) -> None:
        self.slot_of[id] = slot
        self.table_of_slots[id.layer, id.expert].fill_(slot)

    def _depart(self, id: ExpertId) -> None:
        self.slot_of[id] = -1
        self.table_of_slots[id.layer, id.expert].fill_(-1)

    def _fill(self) -> None:
        """Bring every expert here, and be whole."""
        for layer in self.layout.layers:
            flying = [self._start(ExpertId(layer, e), set(), urgent=True) for e in range(self.layout.n_expert)]
            while flying:
                arrived = self.wait(flying)
                flying = [ticket for ticket in flying if ticket not in arrived]
        self.whole = True

    def _biases_of(self, layer: int) -> dict[str, Tensor]:
        named = zip(("gate", "up", "down"), self.layout.layers[layer], strict=True)
        return {
            name: self.device.send(dequantize(stack.bias))
            for name, stack in named
            if stack is not None and stack.bias is not None
        }


def _fewer(counts: Sequence[int]) -> list[int]:
    """Slots of each group where the memory ran out."""
    return [max(1, int(SHRINK * count)) for count in counts]
