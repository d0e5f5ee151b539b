"""ExpertDispatch: the experts' half of a MoE layer, y = sum over k of weight * expert(x)."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from gmoe.experts.expert import Routing
from gmoe.experts.store import ExpertStore
from gmoe.kernels.ops import Activations, expert_mlp

Observer = Callable[[int, Routing], None]


class ExpertDispatch:
    """Runs the experts that a routing asks for; `observers` hear of every routing before it is served."""

    def __init__(self, store: ExpertStore, activations: Activations):
        self.store = store
        self.activations = activations
        self.observers: list[Observer] = []
        self._hits = 0

    def __call__(self, layer: int, x: Tensor, routing: Routing, activation: str = "swiglu") -> Tensor:
        """x [T, D] float32, routing of this layer -> [T, D] float32."""
        for observe in self.observers:
            observe(layer, routing)
        ids, weights = routing
        self._hits += ids.numel()
        return expert_mlp(x, ids, weights, self.store.table(layer), activation, self.activations)

    def stats(self) -> dict[str, Any]:
        """Counters by tier and by action; every expert is resident here, so that all are hits and none is a miss."""
        tier = {"misses": 0, "bytes_loaded": 0, "bytes_wasted": 0, "late": 0, "stall_seconds": 0.0}
        actions = ("load", "cpu", "twin", "skip", "substitute")
        return {"host": {"hits": self._hits, **tier}, "actions": {name: {"count": 0, "mass": 0.0} for name in actions}}
