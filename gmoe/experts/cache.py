"""ExpertCache: the experts of a model that does not fit, with their slots, their reader and the policies over them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from gmoe.experts import policy
from gmoe.experts.auto import AutoEviction, AutoPrefetch, AutoWorkingSet
from gmoe.experts.budget import Budget
from gmoe.experts.calibration import Setting
from gmoe.experts.chooser import Chooser
from gmoe.experts.cost import CostModel, Seen
from gmoe.experts.cost import key as cost_key
from gmoe.experts.dispatch import ExpertDispatch
from gmoe.experts.fallbacks import furnish
from gmoe.experts.fingerprint import header
from gmoe.experts.measure import measure
from gmoe.experts.recorder import Recorder
from gmoe.experts.simulate import Groups
from gmoe.experts.slots import extents, groups, least
from gmoe.experts.split import best_part
from gmoe.experts.trace import Trace
from gmoe.experts.trace_file import ROWS_KEPT, TraceFile
from gmoe.experts.transfer import open_transfer
from gmoe.experts.twin import open_twin, twin_store
from gmoe.gguf.file import GGUFFile
from gmoe.gguf.layout import ExpertLayout
from gmoe.kernels.cpu_ops import usable_cores
from gmoe.options import RuntimeOptions

RESIDENT_SLACK = 0.02  # of the experts, by which a calibration may be off
LEARN_SECONDS = 1.0  # of loading, spent on what an earlier trace says


class Steps(Protocol):
    """What tells of every pass before it runs; a listener is given its rows' `request` and `phase`."""

    listeners: list[Callable[[Any], None]]


class ExpertCache:
    """Gives a dispatch what the options ask for; what is worth saying goes to `notices`.

    `setting` is the calibrated choice that they come from; it becomes None where it does not hold here.
    """

    def __init__(
        self,
        file: GGUFFile,
        layout: ExpertLayout,
        n_layer: int,
        options: RuntimeOptions,
        dispatch: ExpertDispatch,
        budget: Budget,
        notices: list[str],
        setting: Setting | None = None,
    ):
        self.file, self.layout, self.n_layer, self.options = file, layout, n_layer, options
        self.dispatch, self.store = dispatch, dispatch.store
        self.budget, self.notices = budget, notices
        self.setting = setting
        self.twins_part = 0.0  # of the experts' memory
        self.reader = ""  # "direct" or "mapped" where experts are read
        self._at_close: Callable[[], None] = lambda: None

    def furnish(
        self, kv_bytes: int, routers: Callable[..., Any], record: Callable[[int], Recorder], steps: Steps, home: Path
    ) -> None:
        """Put the experts into slots where they do not fit, and give the policies what they ask for.

        `routers` is for prefetchers that look ahead, `record` begins a trace of all that runs, `home` keeps costs.
        """
        options = self.options
        chosen = {"evict": options.evict, "prefetch": options.prefetch, "working_set": options.working_set}
        lossy = {"route": options.route, "miss": "load" if options.miss == "auto" else options.miss}
        named = {kind: name for kind, name in (chosen | lossy).items() if name != "auto"}
        knobs = policy.share_out(named, options.policy)
        head = header(self.file, self.layout, self.n_layer)
        known = TraceFile(self.file.path, options.trace, head)
        self.notices += known.notices
        if self.setting is None and (options.max_kld or options.quality != "exact"):
            self.notices.append("answers are exact: no calibrated setting is both within the budget and faster")
        wish = furnish(self.dispatch, lossy, knobs, self.file, known.trace, options.twin, self._given())
        if options.twin is not None and wish is None:
            self.notices.append(f"the twin is not used: miss={lossy['miss']!r} asks for none")
        shape = self.n_layer, self.layout.n_expert

        def build(kind: str) -> Callable[[str], Any]:
            given = {"shape": shape, "routers": routers, "matrices": known.matrices, "residency": self.store}
            return lambda name: policy.load(kind, name, knobs.get(kind), **given)

        evicts: list[AutoEviction] = []

        def evict() -> policy.EvictionPolicy:
            if options.evict != "auto":
                made: policy.EvictionPolicy = build("evict")(options.evict)
                return made
            evicts.append(AutoEviction(build("evict")))
            return evicts[-1]

        pools = self._take_slots(kv_bytes, evict, wish, known.trace, home)
        if not pools:
            for kind, name in chosen.items():  # they are not needed, but they must exist
                build(kind)("none" if name == "auto" and kind != "evict" else "lru" if name == "auto" else name)
            return
        ahead = AutoPrefetch(build("prefetch"), ("next_gate", "transition")) if options.prefetch == "auto" else None
        kept = AutoWorkingSet(build("working_set")) if options.working_set == "auto" else None
        self.dispatch.prefetch = ahead or build("prefetch")(options.prefetch)
        self.dispatch.working_set = kept or build("working_set")(options.working_set)
        recorder = record(ROWS_KEPT)
        self.chooser = Chooser(recorder, pools, evicts, kept, ahead, self._learn_costs)
        if known.trace is not None:
            self.chooser.learn(known.trace, LEARN_SECONDS)
            self.store.prefetch(known.hottest(self.store.slots // 2), ())
        steps.listeners.append(lambda rows: self._lend(len(rows.request)))
        steps.listeners.append(lambda rows: self.chooser.step(rows.request, rows.phase))

        def at_close() -> None:
            known.save(recorder.trace())
            self._keep_costs()

        self._at_close = at_close

    def _lend(self, rows: int) -> None:
        """A pass over so many tokens comes, whose activations take the place of experts."""
        self.store.lend(self.budget.lent(rows))

    def _given(self) -> dict[str, Any]:
        """What route and miss policies may need of the place where the experts are."""
        return {}

    def _take_slots(
        self,
        kv_bytes: int,
        evict: Callable[[], policy.EvictionPolicy],
        wish: float | None,
        trace: Trace | None,
        home: Path,
    ) -> Groups:
        """Slots for the experts: the layers and the slots of each group; none where all of them fit."""
        options, budget = self.options, self.budget
        if budget.whole:
            return []
        self.costs = self._costs(home)
        beside = 0
        if wish is not None and options.twin is not None:
            _, twins = open_twin(options.twin, self.file, self.layout)
            beside = least(groups(twins, extents(twins)))
            self.twins_part = wish or self._split(twins, trace, budget.room(kv_bytes), beside)
            self.notices.append(f"the twins have {self.twins_part:.0%} of the experts' memory")
        counts = budget.counts(kv_bytes, 1 - self.twins_part, beside)
        transfer = open_transfer(self.file.parts, budget.extents.values(), options.reader)
        self.reader = "mapped" if transfer.mapped else "direct"
        self.notices += [transfer.notice] if transfer.notice else []
        self.store.offload(budget.groups, counts, budget.extents, evict, transfer)
        if options.twin is not None and wish is not None:
            room = int(budget.room(kv_bytes) * self.twins_part)
            self.store.twin = twin_store(options.twin, self.file, self.layout, room, options.reader)
        here, all = self.store.slots, sum(group.experts for group in budget.groups)
        self._require_calibrated(here / all)
        self.notices.append(f"{here} of {all} experts fit into memory; the others are read when they are wanted")
        return [(group.layers, count) for group, count in zip(budget.groups, counts, strict=True)]

    def _require_calibrated(self, here: float) -> None:
        """Be exact where the calibrated setting was measured with more in memory, or where reading cost more."""
        if self.setting is None:
            return
        why = ""
        if here < self.setting.resident - RESIDENT_SLACK:
            why = f"with {self.setting.resident:.0%} of the experts in memory, here {here:.0%} are"
        elif self.reader == "mapped" and self.setting.reader == "direct":
            why = "past the page cache, here experts come out of it; --reader direct reads as then"
        if why:
            self.dispatch.be_exact()
            self.notices.append(f"answers are exact: the model was calibrated {why}")
            self.setting = None

    def close(self) -> None:
        """Keep what was learnt; the store ends by itself."""
        self._at_close()
        self._at_close = lambda: None

    def _split(self, twins: ExpertLayout, trace: Trace | None, room: int, fewest: int) -> float:
        """The twins' part, which has `fewest` bytes or more, by what reading costs here."""
        sizes = [twins.expert_bytes(layer) if layer in twins.layers else 0 for layer in range(self.n_layer)]
        costs = self.costs.costs
        assert costs is not None
        bandwidth, latency = costs.bandwidth, costs.latency
        smallest = self.budget.smallest, fewest
        return best_part(trace, self.dispatch.miss, room, sizes, lambda n: latency + n / bandwidth, smallest)

    def _costs(self, home: Path) -> CostModel:
        """What reading and computing an expert costs here, measured if it is not yet known."""
        threads = self.options.threads or usable_cores()
        costs = CostModel(home, cost_key(self.layout, threads, self.options.activations))
        if costs.costs is None:
            activations = cast(Literal["q8", "float"], self.options.activations)
            slots = sum(self.budget.counts(0)) // len(self.budget.groups)  # their memory, which is still free
            costs.costs = measure(self.file, self.layout, activations, slots=slots)
            costs.save()
        self._seen = Seen()
        return costs

    def _keep_costs(self) -> None:
        self.costs.save()

    def _learn_costs(self, seconds: float, rows: int) -> None:
        """A decode pass has taken so long."""
        s, before = self.store.stats, self._seen
        self._seen = Seen(s.hits + s.misses, s.bytes_loaded, s.compute_seconds, s.read_seconds, s.stall_seconds)
        if rows == 1 and before.asked:
            self.costs.learn(len(self.layout.layers), seconds, before, self._seen)
