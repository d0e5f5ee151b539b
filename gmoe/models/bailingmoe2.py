"""Ling 2.0 and Ring: fused q, k, v, head norms, partial NeoX rope; first blocks dense; sigmoid router in groups."""

from gmoe.layers.attention import GQA
from gmoe.layers.ffn import led_by_dense
from gmoe.layers.rope import rope
from gmoe.layers.router import Gating
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, Decoder, FeedForward


class Model(Decoder):
    """`bailingmoe2`."""

    def attention(self, w: Weights, layer: int) -> Attention:
        """Both head norms are required."""
        w.need("attn_q_norm.weight", "attn_k_norm.weight")
        return GQA(w, rope(w, "neox"))

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """Sigmoid where the file states no gating function; weights come from the unbiased scores."""
        return led_by_dense(w, Gating.SIGMOID, self.dispatch)
