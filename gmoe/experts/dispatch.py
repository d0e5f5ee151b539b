"""ExpertDispatch: the experts' half of a MoE layer, y = sum over k of weight * expert(x)."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from gmoe.experts.expert import ExpertId, Hidden, Routing, Thought
from gmoe.experts.miss import load
from gmoe.experts.misses import Served, resolve
from gmoe.experts.policy import Floats, Ids, MissPolicy, PolicyError, Prefetcher, RoutePolicy, WorkingSet, reading
from gmoe.experts.prefetch import none as no_prefetch
from gmoe.experts.route import exact
from gmoe.experts.store import ExpertStore, TierStats
from gmoe.experts.transfer import Ticket
from gmoe.experts.working_set import none as no_working_set
from gmoe.kernels.ops import Activations, ExpertTable, combine, expert_mlp, expert_rows

Observer = Callable[[int, Routing], None]
Beside = Callable[[], object]  # work that does not hang on the experts
Kept = Callable[[Tensor, Tensor, Tensor, str], Tensor]  # x [T, D], ids and weights [T, k], activation -> [T, D]
ACTIONS = ("load", "cpu", "twin", "skip", "substitute")
ASKED = ("hits", "misses", "late")  # of `TierStats`, what a pass asks for


class ExpertDispatch:
    """Runs the experts that a routing asks for; `observers` hear of every routing before it is served.

    Resident experts run while the others are read, these run as they come, and all are summed in the order of the
    top-k: what is where, and when it comes, changes no bit. What route and miss policies choose otherwise is counted;
    `merged` are tables of one expert a layer, for the miss policy of that name.
    """

    def __init__(self, store: ExpertStore, activations: Activations):
        self.store = store
        self.activations = activations
        self.observers: list[Observer] = []
        self.route: RoutePolicy = exact.Policy()
        self.miss: MissPolicy = load.Policy()
        self.prefetch: Prefetcher = no_prefetch.Policy()
        self.working_set: WorkingSet = no_working_set.Policy()
        self.merged: Mapping[int, ExpertTable] = {}
        self._routed = {"count": 0, "mass": 0.0}  # what the routers chose
        self._rerouted = {"count": 0, "mass": 0.0}  # of it, what the route policy chose otherwise
        self._actions = {name: {"count": 0, "mass": 0.0} for name in ACTIONS}
        self._last_layer = -1
        self._before: list[tuple[dict[str, Any], dict[str, Any]]] = []  # counters, and what they said at the mark

    @property
    def listened(self) -> bool:
        """Whether the routing of every row counts, be it to observers or to a store that learns from it."""
        return bool(self.observers) or not self.store.whole

    @property
    def steady(self) -> bool:
        """Whether a pass is the same kernels on the same memory each time: nothing comes, goes, listens or chooses."""
        return self.store.whole and not self.observers and type(self.route) is exact.Policy

    @property
    def way(self) -> bytes:
        """What the bits of requests that begin now depend on, besides their tokens and who runs with them."""
        return b""

    def be_exact(self) -> None:
        """From now on nothing is served otherwise than the routers say."""
        self.route, self.miss = exact.Policy(), load.Policy()

    def kept(self, table: ExpertTable) -> Kept:
        """What computes experts that are none of the store's: always at hand, and nobody hears of them."""
        return lambda x, ids, weights, activation: expert_mlp(x, ids, weights, table, activation, self.activations)

    def begin(self, task: str = "") -> None:
        """A new request starts."""
        self.begin_text(task)

    def begin_text(self, task: str = "") -> None:
        """To the policies a new request starts; it may be none, but a text that is measured."""
        if not self.store.whole:
            self.store.begin()
            self.route.begin()
            self.prefetch.begin()
            self.working_set.begin(task)

    def __call__(
        self, layer: int, x: Tensor, routing: Routing, activation: str = "swiglu", beside: Beside = lambda: None
    ) -> Tensor:
        """x [T, D] float32, routing of this layer -> [T, D] float32; `beside` is done while experts are fetched."""
        for observe in self.observers:
            observe(layer, routing)
        if not self.store.whole:
            return self._serve(layer, x, routing, activation, beside)
        ids, weights = routing.topk_ids, routing.topk_weights
        self.store.stats.hits += ids.numel()
        if type(self.route) is not exact.Policy:
            ids, weights = map(torch.from_numpy, self._route(layer, routing))
            self.store.stats.hits -= int((ids < 0).sum())
        y = expert_mlp(x, ids, weights, self.store.table(layer), activation, self.activations)
        beside()
        return y

    def mark(self) -> None:
        """A pass begins."""
        asked = [(vars(stats), {name: getattr(stats, name) for name in ASKED}) for stats in self._all_stats()]
        counted = (self._routed, self._rerouted, *self._actions.values())
        self._before = asked + [(counter, dict(counter)) for counter in counted]

    def rewind(self) -> None:
        """The pass is to run again: what it has asked for and chosen is not counted."""
        for counter, before in self._before:
            counter.update(before)

    def _all_stats(self) -> list[TierStats]:
        return [self.store.stats] + ([] if self.store.twin is None else [self.store.twin.stats])

    def stats(self) -> dict[str, Any]:
        """Counters by tier and by action; of the routers' choices how many there were, and were made otherwise."""
        twin = {} if self.store.twin is None else {"twin": asdict(self.store.twin.stats)}
        actions = {name: dict(n) for name, n in self._actions.items()}
        chosen = {"routed": dict(self._routed), "rerouted": dict(self._rerouted)}
        return {**self._tiers(), **twin, "actions": actions, **chosen}

    def _tiers(self) -> dict[str, Any]:
        return {"host": asdict(self.store.stats)}

    def _route(self, layer: int, routing: Routing) -> tuple[Ids, Floats]:
        """The choice to serve; a router that tells no scores has the last word."""
        ids, weights = routing.topk_ids.numpy(), routing.topk_weights.numpy()  # [T, k]
        self._routed["count"] += ids.size
        self._routed["mass"] += float(weights.sum())
        if routing.scores is None or type(self.route) is exact.Policy:
            return ids, weights
        given = reading(ids), reading(weights)
        fresh, weighed = self.route.route(layer, *given, self.store, routing.scores())
        if fresh is given[0] and weighed is given[1]:
            return ids, weights
        n_expert = self.store.layout.n_expert
        if fresh.shape != ids.shape or weighed.shape != ids.shape or fresh.min() < -1 or fresh.max() >= n_expert:
            told = f"ids of shape {fresh.shape} from {fresh.min()} to {fresh.max()}, weights of shape {weighed.shape}"
            raise PolicyError(f"{type(self.route).__module__}: {told}; asked for {ids.shape}, {n_expert} experts")
        fresh, weighed = (np.require(a, of, ("C", "W")) for a, of in ((fresh, ids.dtype), (weighed, weights.dtype)))
        if fresh is not ids:
            lost = ~(ids[:, :, None] == fresh[:, None, :]).any(-1)
            self._rerouted["count"] += int(lost.sum())
            self._rerouted["mass"] += float(weights[lost].sum())
        return fresh, weighed

    def _serve(self, layer: int, x: Tensor, routing: Routing, activation: str, beside: Beside) -> Tensor:
        store, twin = self.store, self.store.twin
        ids, weights = routing.topk_ids.numpy(), routing.topk_weights.numpy()  # [T, k]
        asked = reading(ids), reading(weights), routing.scores and Thought(routing.scores)
        store.observe(layer, *asked)
        self.working_set.observe(layer, *asked)
        if layer <= self._last_layer:
            store.keep(self.working_set.plan(store.slots // 2))
        self._last_layer = layer
        ids, weights = self._route(layer, routing)
        here, absent = store.lookup(layer, _distinct(ids))
        served = self._resolve(absent, ids, weights, routing)
        here += store.lookup(layer, [e for e in _distinct(served.ids) if e not in ids])[0]  # substitutes
        rows, out = self._rows(layer, x, served.ids, activation)
        away = self._away(layer, x, served, activation, out)
        parts = [_Part(store, rows, here, served.load)]
        if twin is not None and (twins := _distinct(served.twins)):
            parts.append(_Part(twin, self._twins(twin, layer, x, served, activation, out), *twin.lookup(layer, twins)))
        for part in parts:
            part.fetch()
        if type(self.prefetch) is not no_prefetch.Policy:
            told = self.prefetch.predict(layer, Hidden(x if routing.seen is None else routing.seen), *asked)
            store.foretell(told, parts[0].pinned)
        store.prefetch(served.behind, parts[0].pinned)
        beside()
        if served.merged.any():
            self._means(layer, x, np.where(served.merged, 0, -1).astype(np.int32), activation, out)
        for part in parts:
            part.run()
        parts[0].absent += away()
        for part in parts:
            part.finish()
        return self._sum(out, served)

    def _rows(self, layer: int, x: Tensor, ids: Ids, activation: str) -> "tuple[Rows, Tensor]":
        """What fills a tensor [T, k, D] with experts that are in the fast tier, and the tensor."""
        out = x.new_empty(*ids.shape, self.store.table(layer).down.rows)
        return _HostRows(x, ids, self.store.table(layer), activation, self.activations, out), out

    def _twins(self, twin: ExpertStore, layer: int, x: Tensor, served: Served, activation: str, out: Tensor) -> "Rows":
        """What fills `out` with twins that are in the fast tier."""
        return _HostRows(x, served.twins, twin.table(layer), activation, self.activations, out)

    def _means(self, layer: int, x: Tensor, ids: Ids, activation: str, out: Tensor) -> None:
        """Fill `out` with the layer's mean expert where ids [T, k] are 0, not -1."""
        expert_rows(x, torch.from_numpy(ids), self.merged[layer], activation, self.activations, out)

    def _away(
        self, layer: int, x: Tensor, served: Served, activation: str, out: Tensor
    ) -> Callable[[], list[ExpertId]]:
        """What fills `out` with experts that are computed in another tier, and returns those that it could not."""
        return list

    def _sum(self, out: Tensor, served: Served) -> Tensor:
        """The rows [T, k, D] weighted and summed in an order that no tier changes -> [T, D]."""
        return combine(out, torch.from_numpy(served.weights), torch.from_numpy(served.places))

    def _resolve(self, absent: list[ExpertId], ids: Ids, weights: Floats, routing: Routing) -> Served:
        if type(self.miss) is load.Policy:
            tally = [("load", float(weights[ids == id.expert].sum())) for id in absent]
            served = Served(ids, weights, np.full_like(ids, -1), np.zeros(ids.shape, bool), load=absent, tally=tally)
        else:
            served = resolve(self.miss, absent, ids, weights, self.store, routing.scores)
        for how, mass in served.tally:
            self._actions[how]["count"] += 1
            self._actions[how]["mass"] += mass
        return served


def _distinct(ids: Ids) -> list[int]:
    return [expert for expert in dict.fromkeys(ids.ravel().tolist()) if expert >= 0]


class Rows(Protocol):
    """The rows [T, k, D] of a layer's experts, filled in any order."""

    seconds: float  # of computing

    def run(self, experts: Iterable[ExpertId]) -> None:
        """Compute these experts for all their tokens."""


class _Part:
    """What one store does for a layer: runs what is there, then what it reads as it comes."""

    def __init__(self, store: ExpertStore, rows: Rows, here: list[ExpertId], absent: list[ExpertId]):
        self.store, self.rows, self.here, self.absent = store, rows, here, list(absent)
        self.pinned, self.flying = set(here), list[Ticket]()
        self.began = self.arrived = time.perf_counter()

    def fetch(self) -> None:
        """Begin to read of the absent ones as many as find slots, in order; they are pinned from then on."""
        while self.absent:
            id = self.absent[0]
            if self.store.resident(id):  # it was on its way, and has come since it was looked up
                self.here.append(id)
            else:
                ticket = self.store.fetch(id, self.pinned)
                if ticket is None:
                    return
                self.flying.append(ticket)
            self.pinned.add(self.absent.pop(0))

    def run(self) -> None:
        """Compute what is there."""
        self.rows.run(self.here)
        self.pinned.difference_update(self.here)
        self.here = []

    def finish(self) -> None:
        """Compute the others in the order in which they come."""
        while self.absent or self.flying:
            self.fetch()
            self.run()
            if not self.flying:
                continue
            began = time.perf_counter()
            arrived = self.store.wait(self.flying)
            self.store.stats.stall_seconds += time.perf_counter() - began
            self.arrived = max(self.arrived, *(ticket.at for ticket in arrived))
            self.flying = [ticket for ticket in self.flying if ticket not in arrived]
            self.here = [ticket.id for ticket in arrived]
            self.run()
        self.store.stats.read_seconds += self.arrived - self.began
        self.store.stats.compute_seconds += self.rows.seconds


class _HostRows:
    """By the kernels of the CPU."""

    def __init__(self, x: Tensor, ids: Ids, table: ExpertTable, activation: str, activations: Activations, out: Tensor):
        self.x, self.ids, self.table, self.out = x, ids, table, out
        self.activation, self.activations = activation, activations
        self.seconds = 0.0

    def run(self, experts: Iterable[ExpertId]) -> None:
        numbers = [id.expert for id in experts]
        if numbers:
            began = time.perf_counter()
            ids = torch.from_numpy(np.where(np.isin(self.ids, numbers), self.ids, -1))
            expert_rows(self.x, ids, self.table, self.activation, self.activations, self.out)
            self.seconds += time.perf_counter() - began
