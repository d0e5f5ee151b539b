"""Llama 4: three blocks in chunks with rope, the fourth full without; the router scales the expert's input."""

from torch import Tensor

from gmoe.layers.attention import GQA, causal, chunked, warmed
from gmoe.layers.ffn import DenseFFN, ExpertDispatch, MoEFFN
from gmoe.layers.norm import RMSNorm
from gmoe.layers.rope import rope
from gmoe.layers.router import Gating, Router, Routing, topk
from gmoe.layers.rows import Weighted
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, Decoder, FeedForward

TEMPERATURE_STEP, TEMPERATURE_SCALE = 8192, 0.1
MAVERICK_EXPERTS = 128  # the model whose queries and keys are not normed


class Chunked(GQA):
    """Rotated queries and keys, normed without weights."""

    def prepare(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Rotation first."""
        q, k = super().prepare(q, k, positions)
        norm = RMSNorm(None, self.eps, on=self.on)
        return (norm(q), norm(k)) if self.normed else (q, k)

    def __init__(self, w: Weights):
        super().__init__(w, rope(w, "norm"), mask=chunked(w.hparams.n_chunk))
        self.eps = w.hparams.rms_eps
        self.normed = w.hparams.n_expert != MAVERICK_EXPERTS


class Full(GQA):
    """No rotation; queries grow with the logarithm of their position."""

    def prepare(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Temperature on the queries only."""
        return warmed(q, positions, 1, TEMPERATURE_STEP, TEMPERATURE_SCALE, self.on), k


class WeightedInput(MoEFFN):
    """One expert a token, which reads weight * x."""

    def __init__(self, w: Weights, route: Router, dispatch: ExpertDispatch):
        super().__init__(w, route, dispatch, shared=DenseFFN(w, "_shexp"))
        self.weigh = Weighted(w.device, w.on)

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, D] -> [T, D]."""
        ids, weights = self.routing(x)[:2]
        given, ones = self.weigh(x, weights)
        return self.sum(given, Routing(ids, ones), x)


class Model(Decoder):
    """`llama4`."""

    def attention(self, w: Weights, layer: int) -> Attention:
        """Every fourth block is full."""
        return Full(w, None, mask=causal) if (layer + 1) % 4 == 0 else Chunked(w)

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """Every `interleave_moe_layer_step`-th block is routed."""
        hp = w.hparams
        if (layer + 1) % hp.moe_layer_step:
            return DenseFFN(w)
        if hp.n_expert_used != 1:
            w.refuse("llama4.expert_used_count", f"{hp.n_expert_used}; only 1 is supported")
        if w.get("ffn_down_exps", ".scale") is not None:  # it would go to the weights, which come before the experts
            w.refuse(f"{w.prefix}ffn_down_exps.scale", "llama4's experts have no scales")
        route = topk(w, Gating.SIGMOID, renormalize=False)
        return WeightedInput(w, route, self.dispatch)
