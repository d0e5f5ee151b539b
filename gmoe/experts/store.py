"""ExpertStore: where the experts are and how they get there; it knows where, never why.

Either all experts are used straight from the map of the file, or they come and go in slots of a budget.
"""

import ctypes
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gmoe.experts.expert_id import ExpertId, Tier
from gmoe.experts.policy import EvictionPolicy, Floats, Ids, Probabilities, real
from gmoe.experts.pool import SlotPool
from gmoe.experts.slots import Arena, Extent, Group
from gmoe.experts.transfer import State, Ticket, Transfer
from gmoe.gguf.layout import ExpertLayout, ExpertStack
from gmoe.kernels.ops import ExpertMatrix, ExpertTable
from gmoe.kernels.reference import as_tensor, dequantize


@dataclass
class TierStats:
    """What happened in one tier; an expert is asked for once a layer and pass, however many tokens want it.

    Where all experts are at hand, each of a token's counts.
    """

    hits: int = 0
    misses: int = 0
    bytes_loaded: int = 0
    bytes_wasted: int = 0  # prefetched and evicted unused
    late: int = 0  # prefetched, not there in time
    stall_seconds: float = 0.0  # compute waited for reads
    read_seconds: float = 0.0  # reads of a layer's own experts were under way
    compute_seconds: float = 0.0  # in the kernels of offloaded experts


class ExpertStore:
    """The experts of a file as tables of addresses, one a layer; address 0: absent. Used by one thread."""

    def __init__(self, layout: ExpertLayout):
        self.layout = layout
        self.stats = TierStats()
        self.whole = True  # every expert is here, straight from the map
        self.moving: list[Callable[[], None]] = []  # hear that experts are about to lie elsewhere
        self.twin: ExpertStore | None = None  # the same experts at a low precision, in slots of their own
        self._tables = {layer: _mapped(layout, layer) for layer in layout.layers}

    def offload(
        self,
        groups: Sequence[Group],
        counts: Sequence[int],
        extents: Mapping[ExpertId, Extent],
        evict: Callable[[], EvictionPolicy],
        transfer: Transfer,
    ) -> None:
        """From now on experts live in `counts[n]` slots of each group; the store closes `transfer`."""
        arena = Arena(groups, counts)
        self._open(groups, counts, extents, evict, transfer, arena)
        self._tables = {layer: _slotted(table, arena) for layer, table in self._tables.items()}

    def _open(
        self,
        groups: Sequence[Group],
        counts: Sequence[int],
        extents: Mapping[ExpertId, Extent],
        evict: Callable[[], EvictionPolicy],
        transfer: Transfer,
        arena: Any,
    ) -> None:
        for hear in self.moving:
            hear()
        self.whole = False
        self.transfer = transfer
        self._extents = extents
        self._arena = arena
        self._groups, self._counts = groups, counts
        self._pools = [SlotPool(count, evict()) for count in counts]
        self._group_of = {layer: n for n, group in enumerate(groups) for layer in group.layers}
        self._flying: dict[ExpertId, Ticket] = {}  # experts that have a slot and are not there
        self._unused: set[ExpertId] = set()  # prefetched, not yet asked for
        self._kept: frozenset[ExpertId] = frozenset()  # the working set
        self._foretold: dict[int, set[ExpertId]] = {}  # by layer, until that comes

    def close(self) -> None:
        """End the transfer; no read is under way afterwards."""
        if self.twin is not None:
            self.twin.close()
        if not self.whole:
            self.transfer.close()

    def check(self) -> None:
        """Raises `TransferError` where experts that were computed with had been cut off in their file."""
        if not self.whole:
            self.transfer.check()

    def table(self, layer: int) -> ExpertTable:
        """The experts of a layer; its addresses change in place when experts come and go."""
        return self._tables[layer]

    def resident(self, id: ExpertId) -> bool:
        """Whether it can be computed now; tells no policy."""
        return bool(self._tables[id.layer].down.address[id.expert])

    def tier(self, id: ExpertId) -> Tier:
        """The best tier that holds it."""
        return Tier.HOST if self.resident(id) else Tier.DISK

    def here(self, layer: int) -> NDArray[np.bool_]:
        """Which experts of a layer can be computed now, [E]."""
        return np.asarray(self._tables[layer].down.address != 0)

    def has_twin(self, id: ExpertId) -> bool:
        """Whether a low-precision twin of it is at hand."""
        return self.twin is not None

    def arriving(self, id: ExpertId) -> bool:
        """Whether it is on its way."""
        return id in self._flying

    @property
    def slots(self) -> int:
        """How many experts can be here at once, of all groups together."""
        return sum(self._counts)

    def lend(self, nbytes: int) -> None:
        """Do without so many bytes of slots, the last ones of each group, one always left; the next call tells anew.

        Called between passes: what is on its way is waited for where slots go away.
        """
        if self.whole:
            return
        all = sum(count * group.slot_bytes for count, group in zip(self._counts, self._groups, strict=True))
        part = nbytes / all
        for n, (pool, count) in enumerate(zip(self._pools, self._counts, strict=True)):
            capacity = max(1, count - math.ceil(part * count))
            if capacity < pool.capacity:
                self.settle()
                for id in pool.resize(capacity):
                    self._forget(id)
                self._arena.release(n, capacity, count)
            elif capacity > pool.capacity:
                pool.resize(capacity)

    def room(self, layer: int) -> int:
        """How many experts of a layer can be here at once."""
        return self._pools[self._group_of[layer]].capacity

    def observe(self, layer: int, ids: Ids, weights: Floats, probabilities: Probabilities) -> None:
        """A layer's routing, before its experts are looked up: for the eviction policies."""
        for pool in self._pools:
            pool.evict.observe(layer, ids, weights, probabilities)

    def begin(self) -> None:
        """A new request starts."""
        for pool in self._pools:
            pool.evict.begin()

    def keep(self, ids: Collection[ExpertId]) -> None:
        """These are worth keeping for a while: they are prefetched, and leave only where nobody else can."""
        if ids or self._kept:
            self._kept = frozenset(ids)
            self.prefetch(ids, ())

    def lookup(self, layer: int, experts: Iterable[int]) -> tuple[list[ExpertId], list[ExpertId]]:
        """Those that are here, and those to fetch; counts them and tells the eviction policy.

        One that is still on its way counts as a late hit, and is among those to fetch.
        """
        self._land([ticket for ticket in self._flying.values() if ticket.final])
        self._foretold.pop(layer, None)
        pool = self._pools[self._group_of[layer]]
        here: list[ExpertId] = []
        absent: list[ExpertId] = []
        for expert in experts:
            id = ExpertId(layer, expert)
            if pool.lookup(id) < 0:
                self.stats.misses += 1
                absent.append(id)
            else:
                self.stats.hits += 1
                flying = id in self._flying
                self.stats.late += flying
                (absent if flying else here).append(id)
            self._unused.discard(id)
        return here, absent

    def fetch(self, id: ExpertId, pinned: Collection[ExpertId]) -> Ticket | None:
        """Bring an absent expert here before anything foretold; None: the pinned ones leave no slot now.

        A prefetch of it is hurried up; prefetches of others give way, those under way are waited for.
        """
        if id in self._flying:
            self.transfer.promote(self._flying[id])
            return self._flying[id]
        group = self._group_of[id.layer]
        while (held := self._held(group, pinned)) and len(held) >= self._pools[group].capacity:
            others = [self._flying[other] for other in held if other in self._flying and other not in pinned]
            if not others:
                return None
            if not any(self._cancel(ticket) for ticket in others):
                self._land(self.transfer.wait(others))
        return self._start(id, held, urgent=True)

    def prefetch(self, ids: Iterable[ExpertId], pinned: Collection[ExpertId]) -> None:
        """Bring experts here when nothing else is read, as long as half of the slots stay free to choose."""
        for id in real(ids, self._group_of, self.layout.n_expert):
            if id in self._flying or self.resident(id):
                continue
            group = self._group_of[id.layer]
            held = self._held(group, pinned)
            if 2 * len(held) < self._pools[group].capacity:
                self._start(id, held, urgent=False)
                self._unused.add(id)

    def foretell(self, ids: Iterable[ExpertId], pinned: Collection[ExpertId]) -> None:
        """`prefetch` of what later layers will ask for; until they do it leaves only where nobody else can."""
        told = list(real(ids, self._group_of, self.layout.n_expert))
        for id in told:
            self._foretold.setdefault(id.layer, set()).add(id)
        self.prefetch(told, pinned)

    def wait(self, tickets: Collection[Ticket]) -> list[Ticket]:
        """Those that have arrived, one at least; one that cannot be read has no slot then and is a `TransferError`."""
        final = self.transfer.wait(tickets)
        self._land(final)
        for ticket in final:
            if ticket.error:
                raise ticket.error
        return final

    def settle(self) -> None:
        """Wait until no read is under way; what failed is forgotten."""
        while self._flying:
            for ticket in list(self._flying.values()):
                self._cancel(ticket)
            if self._flying:
                self._land(self.transfer.wait(list(self._flying.values())))

    def _held(self, group: int, pinned: Collection[ExpertId]) -> set[ExpertId]:
        """Who of a group must not leave."""
        return {id for id in (*pinned, *self._flying) if self._group_of[id.layer] == group}

    def _start(self, id: ExpertId, held: set[ExpertId], urgent: bool) -> Ticket:
        group = self._group_of[id.layer]
        pool = self._pools[group]
        placed = pool.place(id, self._spared(pool, held))
        for other in placed.evicted:
            self._forget(other)
        into = self._arena.slot(group, placed.slot)
        try:
            ticket = self.transfer.submit(id, placed.slot, self._extents[id], into, urgent)
        except BaseException:
            pool.remove(id)
            raise
        self._flying[id] = ticket
        return ticket

    def _spared(self, pool: SlotPool, held: set[ExpertId]) -> set[ExpertId]:
        """Who stays if one has to leave: the held, with them the working set and the foretold where that leaves one."""
        for more in (chain(self._kept, *self._foretold.values()), self._kept):
            spared = held | {id for id in more if id in pool}
            if len(spared) < pool.capacity:
                return spared
        return held

    def _land(self, tickets: Iterable[Ticket]) -> None:
        """What is final has its address, or no slot any more."""
        for ticket in tickets:
            if self._flying.get(ticket.id) is not ticket:
                continue
            del self._flying[ticket.id]
            if ticket.state is not State.DONE:
                self._pools[self._group_of[ticket.id.layer]].remove(ticket.id)
                self._unused.discard(ticket.id)  # a cancelled one is read again if it is wanted
                continue
            self.stats.bytes_loaded += sum(read.needed for read in self._extents[ticket.id].reads)
            self._arrive(ticket.id, ticket.slot)

    def _arrive(self, id: ExpertId, slot: int) -> None:
        """Its bytes are in its slot, or where the transfer says."""
        extent = self._extents[id]
        base = self._arena.address(self._group_of[id.layer], slot)
        places = self.transfer.elsewhere(extent) or [base + start for start in extent.starts]
        for matrix, place in zip(_present(self._tables[id.layer]), places, strict=True):
            matrix.address[id.expert] = place

    def _depart(self, id: ExpertId) -> None:
        """It can be computed no more."""
        for matrix in _present(self._tables[id.layer]):
            matrix.address[id.expert] = 0

    def _cancel(self, ticket: Ticket) -> bool:
        if self.transfer.cancel(ticket):
            self._land([ticket])
            return True
        return False

    def _forget(self, id: ExpertId) -> None:
        """An expert has lost its slot."""
        self._depart(id)
        if id in self._unused:
            self._unused.discard(id)
            self.stats.bytes_wasted += sum(read.needed for read in self._extents[id].reads)


def _present(table: ExpertTable) -> list[ExpertMatrix]:
    return [matrix for matrix in (table.gate, table.up, table.down) if matrix is not None]


def _mapped(layout: ExpertLayout, layer: int) -> ExpertTable:
    experts = layout.layers[layer]
    return ExpertTable(None if experts.gate is None else _matrix(experts.gate), *map(_matrix, experts[1:]))


def _matrix(stack: ExpertStack | None) -> ExpertMatrix:
    assert stack is not None
    address = np.array([matrix.__array_interface__["data"][0] for matrix in stack.matrices], dtype=np.int64)
    bias, scale = (None if v is None else dequantize(v).numpy() for v in (stack.bias, stack.scale))

    def data(expert: int) -> NDArray[np.uint8]:
        view: NDArray[np.uint8] = as_tensor(stack.matrices[expert]).numpy()
        return view

    return ExpertMatrix(stack.format, stack.rows, stack.cols, address, bias, stack.matrices, data, scale)


def _slotted(table: ExpertTable, arena: Arena) -> ExpertTable:
    """The same experts, none of them here yet."""

    def empty(matrix: ExpertMatrix) -> ExpertMatrix:
        row_bytes = matrix.format.row_bytes(matrix.cols)
        address = np.zeros_like(matrix.address)

        def data(expert: int) -> NDArray[np.uint8]:
            if not address[expert]:
                raise KeyError(f"expert {expert} is not here")
            memory = (ctypes.c_uint8 * (matrix.rows * row_bytes)).from_address(int(address[expert]))
            return np.frombuffer(memory, dtype=np.uint8).reshape(matrix.rows, row_bytes)

        return replace(matrix, address=address, owner=arena, data=data)

    return ExpertTable(None if table.gate is None else empty(table.gate), empty(table.up), empty(table.down))


@contextmanager
def kept(store: ExpertStore) -> Iterator[None]:
    """Where what is done inside fails, the store is closed: its readers would outlive a model that never was."""
    try:
        yield
    except BaseException:
        with suppress(Exception):  # what went wrong first is what counts
            store.close()
        raise
