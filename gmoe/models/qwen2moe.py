"""Qwen2-MoE: bias on q, k and v; softmax top-k not renormalised; a shared expert behind a sigmoid gate."""

from gmoe.layers.attention import GQA
from gmoe.layers.ffn import GatedFFN, MoEFFN
from gmoe.layers.rope import rope
from gmoe.layers.router import Gating, topk
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, Decoder, FeedForward


class Model(Decoder):
    """`qwen2moe`."""

    def attention(self, w: Weights, layer: int) -> Attention:
        """The biases come with the file."""
        return GQA(w, rope(w, "neox"))

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """Weights stay as the softmax over all experts gives them."""
        route = topk(w, Gating.SOFTMAX, renormalize=False)
        return MoEFFN(w, route, self.dispatch, shared=GatedFFN(w))
