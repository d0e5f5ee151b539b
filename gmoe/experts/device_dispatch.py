"""DeviceDispatch: the experts' half of a MoE layer on a device; misses are copied there or computed on the CPU."""

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gmoe.experts.device import Device
from gmoe.experts.device_slots import bank_of
from gmoe.experts.device_store import DeviceStore
from gmoe.experts.dispatch import Beside, ExpertDispatch, Kept, Rows
from gmoe.experts.expert import ExpertId, Routing
from gmoe.experts.misses import Served
from gmoe.experts.policy import Ids
from gmoe.experts.route import exact
from gmoe.experts.store import ExpertStore, TierStats
from gmoe.gguf.layout import ExpertLayout
from gmoe.kernels.ops import Activations, DeviceKernels, ExpertBank, ExpertTable, bank_rows, combine, expert_rows

ALIGNED = 4  # int32 numbers: pointers that are not 16 bytes apart want kernels of their own

Experts = Callable[[int, Tensor, Routing, str, Beside], Tensor]


class DeviceDispatch(ExpertDispatch):
    """Where all experts are on the device nothing waits for it; else a layer's ids are copied to the host, once."""

    clock = staticmethod(time.perf_counter)

    def __init__(self, store: DeviceStore, activations: Activations, kernels: DeviceKernels):
        super().__init__(store, activations)
        self.fast, self.kernels = store, kernels
        self.device = store.device
        self.home = ExpertDispatch(store.below, activations)  # by the CPU
        self.aside: NDArray[np.bool_] | None = None  # [T], rows of the next pass whose experts are computed there
        self.begins: Callable[[], bytes] = lambda: b""  # hears of requests, and says in which way they are computed
        self.instead: Experts | None = None  # what stands in for all of this while no request runs
        self.mean_banks: dict[int, ExpertBank] = {}
        self._way = b""
        self.served: Callable[[int, Ids, float], None] = lambda layer, ids, seconds: None  # what rows aside took
        self.computed: Callable[[int, float], None] = lambda tokens, seconds: None  # hears what an expert took here

    @property
    def listened(self) -> bool:
        """Always: here a row's bits depend on how many run together, which must not depend on what is where."""
        return True

    @property
    def steady(self) -> bool:
        return self.aside is None and self.instead is None and super().steady

    def __call__(
        self, layer: int, x: Tensor, routing: Routing, activation: str = "swiglu", beside: Beside = lambda: None
    ) -> Tensor:
        """x [T, D] float32, routing of this layer -> [T, D] float32, all on the device.

        `beside` is launched before the host waits to know what the router chose.
        """
        if self.instead is not None:
            return self.instead(layer, x, routing, activation, beside)
        if self.aside is not None:
            return self._split(layer, x, routing, activation, beside, self.aside)
        routed = type(self.route) is not exact.Policy
        if self.fast.whole and not self.observers and not routed:
            y = self._all_here(layer, x, routing.topk_ids, routing.topk_weights, activation)
            beside()
            return y
        ids, _ = self.device.receive(routing.topk_ids)
        weights, there = self.device.receive(routing.topk_weights)
        begun = None
        if not self.fast.whole:
            begun = _Begun(self.fast, layer, x, routing.topk_ids, activation, self.activations, self.kernels)
        beside()
        there.synchronize()
        known = Routing(ids, weights, routing.scores)
        for observe in self.observers:
            observe(layer, known)
        if begun is not None:
            return self._go_on(begun, layer, x, known, activation)
        if not routed:
            return self._all_here(layer, x, routing.topk_ids, routing.topk_weights, activation)
        fresh, weighed = map(torch.from_numpy, self._route(layer, known))
        self.fast.stats.hits -= int((fresh < 0).sum())
        return self._all_here(layer, x, self.device.send(fresh), self.device.send(weighed), activation)

    def kept(self, table: ExpertTable) -> Kept:
        """The same on the device, where they are copied."""
        bank = bank_of(self.device, table, range(len(table.up.address)))

        def run(x: Tensor, ids: Tensor, weights: Tensor, activation: str) -> Tensor:
            out = x.new_empty(*ids.shape, bank.down.rows)
            bank_rows(x, ids, ids, bank, activation, self.activations, out, self.kernels)
            return combine(out, weights, ids, self.kernels)

        return run

    def begin(self, task: str = "") -> None:
        with self.device.turns.at_work():
            super().begin(task)
            self._way = self.begins()

    @property
    def way(self) -> bytes:
        return self._way

    def launch(self, layer: int, x: Tensor, routing: Routing, activation: str, beside: Beside) -> Tensor:
        """Launch every kernel that this may launch for so many rows, for no expert: zeros [T, D]."""
        twin, ids = self.store.twin, routing.topk_ids
        banks = [self.fast.bank(layer), *([self.mean_banks[layer]] if layer in self.mean_banks else [])]
        if isinstance(twin, DeviceStore) and layer in twin.layout.layers:
            banks.append(twin.bank(layer))
        out = x.new_empty(*ids.shape, banks[0].down.rows)
        nobody, absent = torch.full_like(ids, -1), torch.full_like(self.fast.slots_by_id(layer), -1)
        bank_rows(x, absent, ids, banks[0], activation, self.activations, out, self.kernels)
        for bank in banks:
            bank_rows(x, nobody, ids, bank, activation, self.activations, out, self.kernels)
        beside()
        return combine(out, routing.topk_weights, nobody, self.kernels)

    def _go_on(self, begun: "_Begun", layer: int, x: Tensor, known: Routing, activation: str) -> Tensor:
        """What the host does when it knows the router's choice."""
        begun.known(known.topk_ids.numpy())
        self._begun = begun
        return self._serve(layer, x, known, activation, lambda: None)

    def _split(
        self, layer: int, x: Tensor, routing: Routing, activation: str, beside: Beside, aside: NDArray[np.bool_]
    ) -> Tensor:
        """The experts of the rows `aside` are computed on the CPU, those of the others as ever."""
        mine, others = (torch.from_numpy(np.flatnonzero(which)) for which in (aside, ~aside))
        at, at_others = (self.device.send(which) for which in (mine, others)) if len(others) else (None, None)
        rows, _ = self.device.receive(x if at is None else x.index_select(0, at))
        ids, _ = self.device.receive(routing.topk_ids)
        weights, there = self.device.receive(routing.topk_weights)
        beside()
        there.synchronize()
        for observe in self.observers:
            observe(layer, Routing(ids, weights, routing.scores))
        if at is None or at_others is None:
            return self.device.send(self._compute(layer, rows, Routing(ids, weights), activation))
        given, chosen, weighed = (
            part.index_select(0, at_others) for part in (x, routing.topk_ids, routing.topk_weights)
        )
        if self.fast.whole:
            here = self._all_here(layer, given, chosen, weighed, activation)
        else:
            begun = _Begun(self.fast, layer, given, chosen, activation, self.activations, self.kernels)
            here = self._go_on(begun, layer, given, Routing(ids[others], weights[others]), activation)
        sent = self.device.send(self._compute(layer, rows, Routing(ids[mine], weights[mine]), activation))
        y = x.new_empty(len(x), here.shape[1])
        return y.index_copy_(0, at, sent).index_copy_(0, at_others, here)

    def _compute(self, layer: int, x: Tensor, routing: Routing, activation: str) -> Tensor:
        """The experts' sum by the CPU, of tensors in its memory."""
        mass = float(routing.topk_weights.sum())
        self._actions["cpu"]["count"] += len(np.unique(routing.topk_ids.numpy()))
        self._actions["cpu"]["mass"] += mass
        self._routed["count"] += routing.topk_ids.numel()
        self._routed["mass"] += mass
        began = self.clock()
        y = self.home(layer, x, routing, activation)
        self.served(layer, routing.topk_ids.numpy(), self.clock() - began)
        return y

    def _all_here(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor, activation: str) -> Tensor:
        """Every expert is on the device: no word between it and the host."""
        bank = self.fast.bank(layer)
        out = x.new_empty(*ids.shape, bank.down.rows)
        bank_rows(x, self.fast.slots_by_id(layer), ids, bank, activation, self.activations, out, self.kernels)
        self.fast.stats.hits += ids.numel()
        return combine(out, weights, ids, self.kernels)

    def _all_stats(self) -> list[TierStats]:
        return [*super()._all_stats(), self.fast.below.stats]

    def _tiers(self) -> dict[str, Any]:
        host, gpu = self.fast.below.stats, self.fast.stats
        return {"host": asdict(host), "gpu": asdict(gpu) | {"bytes": self.fast.nbytes}}

    def _rows(self, layer: int, x: Tensor, ids: Ids, activation: str) -> tuple[Rows, Tensor]:
        begun = self._begun
        done = begun.done & (begun.ids == ids)
        given = activation, self.activations, begun.out, self.kernels
        return _DeviceRows(self.fast, layer, x, ids, given, done), begun.out

    def _twins(self, twin: ExpertStore, layer: int, x: Tensor, served: Served, activation: str, out: Tensor) -> Rows:
        assert isinstance(twin, DeviceStore)
        done = np.zeros(served.twins.shape, bool)
        return _DeviceRows(twin, layer, x, served.twins, (activation, self.activations, out, self.kernels), done)

    def put_means(self) -> int:
        """Copy the layers' mean experts to the device; returns their bytes."""
        self.mean_banks = {layer: bank_of(self.device, table) for layer, table in self.merged.items()}
        return sum(bank.data.nbytes for bank in self.mean_banks.values())

    def _means(self, layer: int, x: Tensor, ids: Ids, activation: str, out: Tensor) -> None:
        there = self.device.send(torch.from_numpy(ids))
        bank_rows(x, there, there, self.mean_banks[layer], activation, self.activations, out, self.kernels)

    def _away(
        self, layer: int, x: Tensor, served: Served, activation: str, out: Tensor
    ) -> Callable[[], list[ExpertId]]:
        if not served.cpu:
            return list
        there, event = self.device.receive(x)  # before the kernels of the resident ones, which it does not wait for

        def compute() -> list[ExpertId]:
            below = self.fast.below
            here = [id for id in served.cpu if below.resident(id)]  # reads may have taken a slot away since
            if here:
                event.synchronize()
                began = self.clock()
                ids = np.where(np.isin(served.ids, [id.expert for id in here]), served.ids, -1)
                rows = torch.empty(*ids.shape, out.shape[-1])
                given = there, torch.from_numpy(ids), below.table(layer), activation, self.activations, rows
                expert_rows(*given)
                places = torch.from_numpy(np.flatnonzero(ids >= 0))
                self.computed(len(places) // len(here), (self.clock() - began) / len(here))
                flat = rows.flatten(0, 1).index_select(0, places)
                out.flatten(0, 1).index_copy_(0, self.device.send(places), self.device.send(flat))
            return [id for id in served.cpu if id not in here]

        return compute

    def _sum(self, out: Tensor, served: Served) -> Tensor:
        weights, places = torch.from_numpy(served.weights), torch.from_numpy(served.places)
        return combine(out, self.device.send(weights), self.device.send(places), self.kernels)


class _Begun:
    """The resident ones of those that the router chose, launched before the host knows who they are."""

    def __init__(
        self,
        store: DeviceStore,
        layer: int,
        x: Tensor,
        ids: Tensor,
        activation: str,
        activations: Activations,
        kernels: DeviceKernels,
    ):
        bank = store.bank(layer)
        self.out = x.new_empty(*ids.shape, bank.down.rows)
        self.here = store.here(layer)  # [E]
        bank_rows(x, store.slots_by_id(layer), ids, bank, activation, activations, self.out, kernels)
        self.store, self.layer = store, layer

    def known(self, ids: Ids) -> None:
        """The host has the router's choice [T, k]."""
        self.ids, self.done = ids, self.here[ids]
        self.store.read(self.layer, np.unique(ids[self.done]).tolist())


class _DeviceRows:
    """By the kernels of the device, which are launched and not waited for."""

    def __init__(
        self,
        store: DeviceStore,
        layer: int,
        x: Tensor,
        ids: Ids,
        given: tuple[str, Activations, Tensor, DeviceKernels],  # the last of what `bank_rows` takes
        done: NDArray[np.bool_],  # [T, k], launched already
    ):
        self.store, self.layer, self.x, self.ids = store, layer, x, ids
        self.given = given
        self.done = done
        self.seconds = 0.0  # of launching

    def run(self, experts: Iterable[ExpertId]) -> None:
        """Launch these experts for all their tokens."""
        numbers = [id.expert for id in experts]
        if not numbers:
            return
        began = time.perf_counter()
        wanted = np.isin(self.ids, numbers) & ~self.done
        if wanted.any():
            slots = np.where(wanted, self.store.slot_of[self.layer][self.ids], -1)
            both = np.full((2, -(-slots.size // ALIGNED) * ALIGNED), -1, np.int32)
            both[0, : slots.size], both[1, : slots.size] = slots.ravel(), self.ids.ravel()
            there = self.store.device.send(torch.from_numpy(both))[:, : slots.size].view(2, *slots.shape)
            bank_rows(self.x, there[0], there[1], self.store.bank(self.layer), *self.given)
        self.store.read(self.layer, numbers)
        self.seconds += time.perf_counter() - began


def tiers(
    layout: ExpertLayout, device: Device | None, activations: Activations, on: DeviceKernels | None
) -> tuple[ExpertStore, ExpertDispatch]:
    """Where the experts are and what runs them: the map or host memory, with a device above it where there is one."""
    host = ExpertStore(layout)
    if device is None or on is None:
        return host, ExpertDispatch(host, activations)
    store = DeviceStore(host, device)
    return store, DeviceDispatch(store, activations, on)
