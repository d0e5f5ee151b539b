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
        """Both norms are required, and span all heads."""
        w.need("attn_q_norm.weight", "attn_k_norm.weight")
        return GQA(w, rope(w, "neox"), across=True)

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """Weights stay as the softmax over all experts gives them."""
        return MoEFFN(w, topk(w, Gating.SOFTMAX, renormalize=False), self.dispatch)
