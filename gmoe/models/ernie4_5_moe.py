"""ERNIE 4.5: interleaved rope; first blocks dense, then every n-th routed; softmax renormalised; shared experts."""

from gmoe.layers.attention import GQA
from gmoe.layers.ffn import DenseFFN, MoEFFN
from gmoe.layers.rope import rope
from gmoe.layers.router import Gating, topk
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, Decoder, FeedForward


class Model(Decoder):
    """`ernie4_5-moe`."""

    def attention(self, w: Weights, layer: int) -> Attention:
        """Plain grouped-query attention."""
        return GQA(w, rope(w, "norm"))

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """Softmax, renormalised; the selection bias is optional."""
        hp = w.hparams
        if layer < hp.n_layer_dense_lead or (layer + 1) % hp.moe_layer_step:
            return DenseFFN(w)
        route = topk(w, Gating.SOFTMAX, renormalize=True, bias=w.get("exp_probs_b", ".bias", hp.n_expert))
        shared = DenseFFN(w, "_shexp") if w.has("ffn_up_shexp") else None
        return MoEFFN(w, route, self.dispatch, shared=shared)
