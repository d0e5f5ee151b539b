"""OLMoE: q and k normed over the whole width, NeoX rope; softmax top-k not renormalised."""

from gmoe.layers.attention import GQA
from gmoe.layers.ffn import MoEFFN
from gmoe.layers.rope import rope
from gmoe.layers.router import Gating, topk
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, Decoder, FeedForward


class Model(Decoder):
    """`olmoe`."""

    def attention(self, w: Weights, layer: int) -> Attention:
        """The norms come with the file; their width says that they span all heads."""
        return GQA(w, rope(w, "neox"))

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """Weights stay as the softmax over all experts gives them."""
        return MoEFFN(w, topk(w, Gating.SOFTMAX, renormalize=False), self.dispatch)
