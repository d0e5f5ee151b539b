"""ExpertDispatch: the experts' half of a MoE layer, y = sum over k of weight * expert(x)."""

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gmoe.experts.expert import Action, ExpertId, Miss, Routing
from gmoe.experts.miss import load
from gmoe.experts.policy import Ids, MissPolicy, Prefetcher, RoutePolicy, WorkingSet
from gmoe.experts.prefetch import none as no_prefetch
from gmoe.experts.route import exact
from gmoe.experts.store import ExpertStore
from gmoe.experts.transfer import Ticket
from gmoe.experts.working_set import none as no_working_set
from gmoe.kernels.ops import Activations, ExpertTable, combine, expert_mlp, expert_rows

Observer = Callable[[int, Routing], None]
ACTIONS = ("load", "cpu", "twin", "skip", "substitute")


class ExpertDispatch:
    """Runs the experts that a routing asks for; `observers` hear of every routing before it is served.

    Resident experts run while the others are read, these run as they come, and all are summed in the order of the
    top-k: what is where, and when it comes, changes no bit.
    """

    def __init__(self, store: ExpertStore, activations: Activations):
        self.store = store
        self.activations = activations
        self.observers: list[Observer] = []
        self.route: RoutePolicy = exact.Policy()
        self.miss: MissPolicy = load.Policy()
        self.prefetch: Prefetcher = no_prefetch.Policy()
        self.working_set: WorkingSet = no_working_set.Policy()
        self._actions = {name: {"count": 0, "mass": 0.0} for name in ACTIONS}
        self._last_layer = -1

    def begin(self, task: str = "") -> None:
        """A new request starts."""
        if not self.store.whole:
            self.store.begin()
            self.prefetch.begin()
            self.working_set.begin(task)

    def __call__(self, layer: int, x: Tensor, routing: Routing, activation: str = "swiglu") -> Tensor:
        """x [T, D] float32, routing of this layer -> [T, D] float32."""
        for observe in self.observers:
            observe(layer, routing)
        ids, weights = routing
        if self.store.whole:
            self.store.stats.hits += ids.numel() if len(ids) == 1 else len(np.unique(ids.numpy()))
            return expert_mlp(x, ids, weights, self.store.table(layer), activation, self.activations)
        return self._serve(layer, x, routing, activation)

    def stats(self) -> dict[str, Any]:
        """Counters by tier and by action."""
        return {"host": asdict(self.store.stats), "actions": {name: dict(n) for name, n in self._actions.items()}}

    def _serve(self, layer: int, x: Tensor, routing: Routing, activation: str) -> Tensor:
        store = self.store
        ids, weights = routing.topk_ids.numpy(), routing.topk_weights.numpy()  # [T, k]
        store.observe(layer, ids, weights)
        self.working_set.observe(layer, ids, weights)
        if layer <= self._last_layer:
            store.keep(self.working_set.plan(store.slots // 2))
        self._last_layer = layer
        ids, weights = self.route.route(layer, ids, weights, store)
        here, absent = store.lookup(layer, dict.fromkeys(ids.ravel().tolist()))
        absent = self._resolve(absent, ids, weights)
        rows = _Rows(x, ids, store.table(layer), activation, self.activations)
        pinned, flying = set(here), list[Ticket]()
        self._fetch(absent, pinned, flying)
        if type(self.prefetch) is not no_prefetch.Policy:
            store.prefetch(self.prefetch.predict(layer, x.numpy(), ids, weights), pinned)
        rows.run(here)
        pinned.difference_update(here)
        while absent or flying:
            self._fetch(absent, pinned, flying)
            began = time.perf_counter()
            arrived = store.wait(flying)
            store.stats.stall_seconds += time.perf_counter() - began
            flying = [ticket for ticket in flying if ticket not in arrived]
            came = [ticket.id for ticket in arrived]
            rows.run(came)
            pinned.difference_update(came)
        return combine(rows.out, torch.from_numpy(weights), torch.from_numpy(ids))

    def _fetch(self, absent: list[ExpertId], pinned: set[ExpertId], flying: list[Ticket]) -> None:
        """Begin to read of `absent` as many as find slots, in order; they are pinned from then on."""
        while absent:
            ticket = self.store.fetch(absent[0], pinned)
            if ticket is None:
                return
            pinned.add(absent.pop(0))
            flying.append(ticket)

    def _resolve(self, absent: list[ExpertId], ids: Ids, weights: Any) -> list[ExpertId]:
        """Ask the miss policy about each; returns those to be read."""
        wait = []
        for id in absent:
            where = ids == id.expert
            given = weights[where]
            miss = Miss(id, float(given.max()), int(where.sum()), self.store.tier(id), self.store.arriving(id))
            action = self.miss.resolve(miss, self.store)
            self._count(action, float(given.sum()))
            if action.how != "load":
                raise NotImplementedError(f"the action {action.how!r}")
            wait.append(id)
        return wait

    def _count(self, action: Action, mass: float) -> None:
        self._actions[action.how]["count"] += 1
        self._actions[action.how]["mass"] += mass


class _Rows:
    """The rows [T, k, D] of a layer's experts, filled in any order."""

    def __init__(self, x: Tensor, ids: Ids, table: ExpertTable, activation: str, activations: Activations):
        self.x, self.ids, self.table = x, ids, table
        self.activation, self.activations = activation, activations
        self.out = x.new_empty(*ids.shape, table.down.rows)

    def run(self, experts: Iterable[ExpertId]) -> None:
        """Compute these experts for all their tokens."""
        numbers = [id.expert for id in experts]
        if numbers:
            ids = torch.from_numpy(np.where(np.isin(self.ids, numbers), self.ids, -1))
            expert_rows(self.x, ids, self.table, self.activation, self.activations, self.out)
