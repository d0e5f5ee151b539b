"""DeviceCache: the experts' slots on a device, and below them in host memory where that is too small as well."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gmoe.experts import policy
from gmoe.experts.cache import ExpertCache, Steps
from gmoe.experts.device_budget import RESERVE, DeviceBudget, asked_bytes
from gmoe.experts.device_cost import DeviceCosts, measure
from gmoe.experts.device_dispatch import DeviceDispatch
from gmoe.experts.device_store import DeviceStore
from gmoe.experts.device_watch import Watch
from gmoe.experts.evict import lru
from gmoe.experts.miss import balance
from gmoe.experts.recorder import Recorder
from gmoe.experts.simulate import Groups
from gmoe.experts.slots import least
from gmoe.experts.trace import Trace
from gmoe.experts.transfer import open_transfer


class DeviceCache(ExpertCache):
    """Furnished when the other weights are on the device, before the KV cache is."""

    def furnish(
        self, kv_bytes: int, routers: Callable[..., Any], record: Callable[[int], Recorder], steps: Steps, home: Path
    ) -> None:
        super().furnish(kv_bytes, routers, record, steps, home)
        store = self.store
        if self.options.gpu_memory == "auto" and isinstance(store, DeviceStore) and store.groups:
            self.watch = Watch(store, self.budget.activations(self.budget.chunk(0)), self.notices)
            steps.listeners.append(lambda rows: self.watch.look())

    def _lend(self, rows: int) -> None:
        return None  # activations are on the device, whose cache shrinks by itself

    def _given(self) -> dict[str, Any]:
        return {"costs": DeviceCosts(1.0, 1.0, 1.0)}  # until there are slots to measure with

    def _take_slots(
        self,
        kv_bytes: int,
        evict: Callable[[], policy.EvictionPolicy],
        wish: float | None,
        trace: Trace | None,
        home: Path,
    ) -> Groups:
        store, dispatch, options = self.store, self.dispatch, self.options
        assert isinstance(store, DeviceStore) and isinstance(dispatch, DeviceDispatch)
        if not store.groups:
            return []
        disk = self._host_tier(store, home)
        device = store.device
        asked, work = asked_bytes(options.gpu_memory, device.total()), self.budget.activations(self.budget.chunk(0))
        if asked is not None:
            asked -= self.budget.fixed  # those are on the device already
        budget = DeviceBudget(str(self.file.path), store.groups, device.free(), 0, kv_bytes, work, asked)
        counts = store.settle_within(budget.counts(), evict)
        here, all_of_them = store.slots, sum(group.experts for group in store.groups)
        self.notices.append(f"{here} of {all_of_them} experts fit on {device.torch}, in {store.nbytes >> 20} MiB")
        if store.whole:
            return []
        if isinstance(dispatch.miss, balance.Policy):
            dispatch.miss.costs = costs = measure(store, dispatch.activations, disk)
            dispatch.computed = costs.computed
        return [(group.layers, count) for group, count in zip(store.groups, counts, strict=True)]

    def _host_tier(self, store: DeviceStore, home: Path) -> float:
        """Slots in host memory where the file is larger; returns the seconds that an expert takes from the disk."""
        if self.budget.whole:
            return 0.0
        known = self._costs(home).costs
        assert known is not None
        counts = self.budget.counts(0)
        transfer = open_transfer(self.file.parts, self.budget.extents.values(), self.options.reader)
        self.notices += [transfer.notice] if transfer.notice else []
        store.below.offload(self.budget.groups, counts, self.budget.extents, lru.Policy, transfer)
        everything = sum(group.experts for group in self.budget.groups)
        fit = f"{sum(counts)} of {everything} experts fit into memory"
        self.notices.append(f"{fit}; the others are read when they are wanted")
        size = self.budget.experts / everything
        return known.latency + size / known.bandwidth

    def _keep_costs(self) -> None:
        return None

    def _learn_costs(self, seconds: float, rows: int) -> None:
        return None


def room_for_kv(store: DeviceStore, work: int) -> int:
    """Bytes that the KV cache may take at most: what one expert of each kind and a pass leave."""
    return max(0, store.device.free() - least(store.groups) - work - RESERVE)
