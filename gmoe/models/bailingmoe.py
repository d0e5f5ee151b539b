"""Ling 1: interleaved rope; every block routed, softmax top-k renormalised where the file says so; shared experts."""

from gmoe.layers.attention import GQA
from gmoe.layers.ffn import DenseFFN, MoEFFN
from gmoe.layers.rope import rope
from gmoe.layers.router import Gating, topk
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, Decoder, FeedForward


class Model(Decoder):
    """`bailingmoe`."""

    def attention(self, w: Weights, layer: int) -> Attention:
        """Plain grouped-query attention."""
        return GQA(w, rope(w, "norm", factors="none"))

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """No block is dense and the gating is softmax, whatever the file says, as in llama.cpp."""
        hp = w.hparams
        route = topk(w, Gating.SOFTMAX, renormalize=hp.expert_weights_norm, scale=hp.expert_weights_scale)
        return MoEFFN(w, route, self.dispatch, shared=DenseFFN(w, "_shexp"))
