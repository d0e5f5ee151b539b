"""Qwen3, dense: q and k normed per head, NeoX rope."""

from gmoe.layers.attention import GQA
from gmoe.layers.ffn import DenseFFN
from gmoe.layers.rope import rope
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, Decoder, FeedForward


class Model(Decoder):
    """`qwen3`."""

    def attention(self, w: Weights, layer: int) -> Attention:
        """Both head norms are required."""
        w.need("attn_q_norm.weight", "attn_k_norm.weight")
        return GQA(w, rope(w, "neox"))

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """Dense everywhere."""
        return DenseFFN(w)
