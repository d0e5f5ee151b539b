"""DeviceCache: the experts' slots on a device, and below them in host memory where that is too small as well."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gmoe.experts import calibration, policy
from gmoe.experts.cache import ExpertCache, Steps
from gmoe.experts.device import Device
from gmoe.experts.device_budget import DeviceBudget, asked_bytes
from gmoe.experts.device_cost import DeviceCosts, measure
from gmoe.experts.device_dispatch import DeviceDispatch
from gmoe.experts.device_slots import device_groups
from gmoe.experts.device_store import DeviceStore
from gmoe.experts.device_watch import Watch
from gmoe.experts.device_worth import Worth
from gmoe.experts.evict import lru
from gmoe.experts.miss import balance, load
from gmoe.experts.recorder import Recorder
from gmoe.experts.route import exact
from gmoe.experts.simulate import Groups
from gmoe.experts.slots import least, share
from gmoe.experts.split import best_part
from gmoe.experts.store import ExpertStore
from gmoe.experts.trace import Trace
from gmoe.experts.transfer import open_transfer
from gmoe.experts.twin import open_twin, require_room
from gmoe.gguf.file import GGUFFile
from gmoe.gguf.hparams import Hparams
from gmoe.gguf.layout import ExpertLayout


class DeviceCache(ExpertCache):
    """Furnished when the other weights are on the device, before the KV cache is."""

    def furnish(
        self, kv_bytes: int, routers: Callable[..., Any], record: Callable[[int], Recorder], steps: Steps, home: Path
    ) -> None:
        super().furnish(kv_bytes, routers, record, steps, home)
        store, dispatch = self.store, self.dispatch
        if self.options.gpu_memory == "auto" and isinstance(store, DeviceStore) and store.groups:
            self.watch = Watch(store, self.budget.activations(self.budget.chunk(0)), self.notices)
            steps.listeners.append(lambda rows: self.watch.look())
        assert isinstance(store, DeviceStore) and isinstance(dispatch, DeviceDispatch)
        lossless = type(dispatch.miss) is load.Policy and type(dispatch.route) is exact.Policy
        if self.options.miss != "load" and lossless and store.groups:
            used = Hparams.from_metadata(self.file.metadata, str(self.file.path)).n_expert_used
            self.worth = Worth(dispatch, used, self._measure, self.notices, self._recorded)
            self.worth.decide(self._trace)
            steps.listeners.append(self.worth)

    def _measure(self) -> DeviceCosts:
        store, dispatch = self.store, self.dispatch
        assert isinstance(store, DeviceStore)
        return measure(store, dispatch.activations, self._disk)

    def _recorded(self) -> Trace | None:
        """What has run, where it is kept."""
        return self.chooser.recorder.trace() if hasattr(self, "chooser") else None

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
        self._trace, self._disk = trace, self._host_tier(store, home)
        device = store.device
        means = dispatch.put_means()
        asked, work = asked_bytes(options.gpu_memory, device.total()), self.budget.activations(self.budget.chunk(0))
        if asked is not None:
            asked -= self.budget.fixed + means  # those are on the device already
        budget = DeviceBudget(str(self.file.path), store.groups, device.free(), 0, kv_bytes, work, asked)
        if options.twin is not None and wish is not None and not budget.whole:
            self.twins_part = wish or self._split_device(options.twin, trace, store, budget.room)
            budget.counts(1 - self.twins_part)  # refused before twins take memory
            store.twin = device_twin(options.twin, self.file, self.layout, device, int(budget.room * self.twins_part))
            twins = f"{store.twin.slots} of {sum(group.experts for group in store.twin.groups)} twins"
            self.notices.append(f"{twins} have {self.twins_part:.0%} of the experts' memory on {device.torch}")
        counts = store.settle_within(budget.counts(1 - self.twins_part), evict)
        here, all_of_them = store.slots, sum(group.experts for group in store.groups)
        self.notices.append(f"{here} of {all_of_them} experts fit on {device.torch}, in {store.nbytes >> 20} MiB")
        if store.whole:
            return []
        self.reader = calibration.DEVICE
        self._require_calibrated(here / all_of_them)
        if isinstance(dispatch.miss, balance.Policy):
            dispatch.miss.costs = costs = self._measure()
            dispatch.computed, store.copied = costs.computed, costs.copied
        return [(group.layers, count) for group, count in zip(store.groups, counts, strict=True)]

    def _split_device(self, twin: Path, trace: Trace | None, store: DeviceStore, room: int) -> float:
        """The twins' part, by the bytes that are copied."""
        _, twins = open_twin(twin, self.file, self.layout)
        sizes = [twins.expert_bytes(layer) if layer in twins.layers else 0 for layer in range(self.n_layer)]
        smallest = least(store.groups), least(device_groups(twins)[0])
        return best_part(trace, self.dispatch.miss, room, sizes, float, smallest)

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


def device_twin(path: Path, model: GGUFFile, layout: ExpertLayout, device: Device, room: int) -> DeviceStore:
    """The twin's experts in `room` bytes of slots of their own on the device, out of its map; ValueError."""
    _, twins = open_twin(path, model, layout)
    store = DeviceStore(ExpertStore(twins), device)
    require_room(path, least(store.groups), room, "on the device")
    store.settle_within(share(store.groups, room), lru.Policy)
    return store
