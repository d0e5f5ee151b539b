"""Llama and Mixtral: interleaved rope; dense, or routed by softmax over the chosen top-k."""

from gmoe.layers.attention import GQA
from gmoe.layers.ffn import DenseFFN, MoEFFN
from gmoe.layers.rope import rope
from gmoe.layers.router import Gating, topk
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, Decoder, FeedForward


class Model(Decoder):
    """`llama`."""

    def attention(self, w: Weights, layer: int) -> Attention:
        """Plain grouped-query attention."""
        return GQA(w, rope(w, "norm"))

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """Dense where there are no experts."""
        if not w.hparams.n_expert:
            return DenseFFN(w)
        return MoEFFN(w, topk(w, Gating.SOFTMAX, renormalize=True), self.dispatch)
