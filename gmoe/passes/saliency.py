"""saliency: how much each expert matters to a text, by REAP (2510.13999), SEER-MoE (2404.05089), TSEP (2206.00277)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gmoe.experts.expert import Routing
from gmoe.experts.store import ExpertStore
from gmoe.experts.trace import Trace
from gmoe.gguf.layout import ExpertLayout
from gmoe.kernels.ops import Activations, expert_rows
from gmoe.models.decoder import Decoder
from gmoe.passes.masked import routed, unrecorded
from gmoe.passes.prune import Scores

NAMES = ("reap", "count", "soft", "proficiency")


class Saliency:
    """Sums over the tokens of a text, by layer [E].

    `hits`: how often an expert was chosen; `weight`: its gate weight then; `soft`: the router's probability, chosen or
    not; `effect`: gate weight times the norm of its output.
    """

    def __init__(self, layers: Sequence[int], n_expert: int):
        self.n_expert = n_expert
        self.hits, self.weight, self.soft, self.effect = ({n: np.zeros(n_expert) for n in layers} for _ in range(4))

    @classmethod
    def of_trace(cls, trace: Trace, layers: Sequence[int]) -> "Saliency":
        """What a recorded trace tells: all but the effect, and `soft` only where it has scores."""
        found = cls(layers, trace.header.n_expert)
        for layer in layers:
            rows = trace.rows["layer"] == layer
            scores = None if trace.scores is None else trace.scores[rows].astype(np.float64)
            found.choose(layer, trace.ids[rows], trace.weights[rows], scores)
        return found

    def choose(self, layer: int, ids: NDArray[Any], weights: NDArray[Any], scores: NDArray[Any] | None) -> None:
        """A router's choice for some tokens, ids and weights [T, k], and its probabilities [T, E] where known."""
        self.hits[layer] += np.bincount(ids.ravel(), minlength=self.n_expert)
        self.weight[layer] += np.bincount(ids.ravel(), weights.ravel(), self.n_expert)
        if scores is not None:
            self.soft[layer] += scores.sum(0, dtype=np.float64)

    @contextmanager
    def listening(self, model: Decoder, layout: ExpertLayout, activations: Activations) -> Iterator[None]:
        """Within, what the model computes is counted; experts are read from the map of the file once more."""
        blocks, store = routed(model), ExpertStore(layout)
        with ExitStack() as stack:
            stack.enter_context(unrecorded(model))
            for block in blocks.values():
                for name in ("route", "dispatch"):
                    stack.callback(setattr, block, name, getattr(block, name))
                block.route = self._routing(block.layer, block.route)
                block.dispatch = self._running(block.dispatch, store, activations)
            yield

    def _routing(self, layer: int, route: Callable[[Tensor], Routing]) -> Callable[[Tensor], Routing]:
        def listen(logits: Tensor) -> Routing:
            routing = route(logits)
            known = None if routing.scores is None else routing.scores().probabilities
            self.choose(layer, routing.topk_ids.numpy(), routing.topk_weights.numpy(), known)
            return routing

        return listen

    def _running(self, dispatch: Any, store: ExpertStore, activations: Activations) -> Any:
        def listen(layer: int, x: Tensor, routing: Routing, activation: str = "swiglu", *beside: Any) -> Tensor:
            ids, weights, table = routing.topk_ids, routing.topk_weights, store.table(layer)
            out = x.new_empty(*ids.shape, table.down.rows)
            expert_rows(x.contiguous(), ids, table, activation, activations, out)
            effect = (weights * torch.linalg.vector_norm(out, dim=-1)).numpy()
            self.effect[layer] += np.bincount(ids.numpy().ravel(), effect.ravel(), self.n_expert)
            y: Tensor = dispatch(layer, x, routing, activation, *beside)
            return y

        return listen

    def scores(self, name: str) -> Scores:
        """What experts are ranked by, [E] a layer; those that were never chosen have 0, but for `soft`.

        `reap`: the mean effect over the tokens that chose an expert; `count` and `soft`: SEER-MoE's two sums;
        `proficiency`: the hit rate times the mean gate weight, which is what TSEP leaves without its training.
        """
        if name == "reap":
            return {layer: effect / np.maximum(self.hits[layer], 1) for layer, effect in self.effect.items()}
        return {"count": self.hits, "soft": self.soft, "proficiency": self.weight}[name]

    @property
    def unseen(self) -> int:
        """Experts that no token chose."""
        return sum(int((hits == 0).sum()) for hits in self.hits.values())
