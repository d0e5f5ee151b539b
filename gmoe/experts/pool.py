"""SlotPool: the places of one tier, who sits where, and one eviction policy; integers only."""

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import NamedTuple

from gmoe.experts.expert_id import ExpertId
from gmoe.experts.policy import EvictionPolicy, PolicyError


class Placement(NamedTuple):
    """The slot of a newcomer, and who had to leave for it."""

    slot: int
    evicted: tuple[ExpertId, ...]


class SlotPool:
    """`capacity` equal slots; with `size`, a budget of `capacity` bytes of which an expert takes `size(id)`."""

    def __init__(self, capacity: int, evict: EvictionPolicy, size: Callable[[ExpertId], int] = lambda id: 1):
        if capacity < 1:
            raise ValueError(f"a pool needs room for one expert at least, not {capacity}")
        self.capacity = capacity
        self.evict = evict
        self.used = 0
        self._size = size
        self._largest = 0
        self._slots: dict[ExpertId, int] = {}
        self._free: list[int] = []
        self._begun = 0  # slots from here on were never given to anybody

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, id: object) -> bool:
        return id in self._slots

    def __iter__(self) -> Iterator[ExpertId]:
        return iter(self._slots)

    def lookup(self, id: ExpertId) -> int:
        """The slot, or -1; tells the policy of a hit."""
        slot = self._slots.get(id, -1)
        if slot >= 0:
            self.evict.hit(id)
        return slot

    def absent(self, ids: Iterable[ExpertId]) -> list[ExpertId]:
        """`lookup` of several: those that are not here."""
        slots, hit = self._slots, self.evict.hit
        gone = []
        for id in ids:
            if id in slots:
                hit(id)
            else:
                gone.append(id)
        return gone

    def place(self, id: ExpertId, pinned: Collection[ExpertId] = ()) -> Placement:
        """Give an absent expert a slot; others leave until it fits, never a pinned one.

        Raises ValueError where it is resident, or where pinned ones leave no room; nothing has changed then. A victim
        that is pinned or not here is a PolicyError: in its slot something else would be computed.
        """
        slots = self._slots
        if id in slots:
            raise ValueError(f"{id} is resident already")
        size = self._size(id)
        if size > self._largest:
            self._largest = size
        evicted: tuple[ExpertId, ...] = ()
        if self.used + size > self.capacity:
            if (len(pinned) + 1) * self._largest > self.capacity:  # there might be no room
                if size + sum(self._size(held) for held in pinned if held in slots) > self.capacity:
                    raise ValueError(f"{id} does not fit: the others are pinned")
            while self.used + size > self.capacity:
                gone = self.evict.victim(pinned)
                if gone not in slots or gone in pinned:
                    policy, why = type(self.evict).__module__, "pinned" if gone in slots else "not resident"
                    raise PolicyError(f"{policy}: the victim is {gone!r}, which is {why}")
                self.remove(gone)
                evicted = (*evicted, gone)
        if self._free:
            slot = self._free.pop()
        else:
            slot = self._begun
            self._begun += 1
        slots[id] = slot
        self.used += size
        self.evict.insert(id)
        return Placement(slot, evicted)

    def resize(self, capacity: int) -> list[ExpertId]:
        """From now on use the first `capacity` of equal slots, one at least; those who sat in others have left."""
        if capacity < 1:
            raise ValueError(f"a pool needs room for one expert at least, not {capacity}")
        gone = [id for id, slot in self._slots.items() if slot >= capacity]
        for id in gone:
            self.remove(id)
        self.capacity = capacity
        self._begun = min(self._begun, capacity)
        self._free = [slot for slot in self._free if slot < capacity]
        return gone

    def is_full(self, size: int = 1) -> bool:
        """Whether somebody must leave for a newcomer of this size."""
        return self.used + size > self.capacity

    def remove(self, id: ExpertId) -> None:
        """Take an expert out, as after a failed read."""
        self._free.append(self._slots.pop(id))
        self.used -= self._size(id)
        self.evict.remove(id)
