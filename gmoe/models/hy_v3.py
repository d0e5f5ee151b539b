"""Hunyuan 3: head norms and NeoX rope in every block; sigmoid router with selection bias beside a shared expert."""

from gmoe.layers.attention import GQA
from gmoe.layers.ffn import DenseFFN, MoEFFN
from gmoe.layers.rope import rope
from gmoe.layers.router import Gating, stated
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, Decoder, FeedForward


class Model(Decoder):
    """`hy_v3`."""

    def attention(self, w: Weights, layer: int) -> Attention:
        """Both head norms are required."""
        w.need("attn_q_norm.weight", "attn_k_norm.weight")
        return GQA(w, rope(w, "neox", factors="none"))

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """Experts where the block has a router, whose bias is a tensor without a suffix."""
        if not w.has("ffn_gate_inp"):
            return DenseFFN(w)
        return MoEFFN(w, stated(w, Gating.SIGMOID, bias=""), self.dispatch, shared=DenseFFN(w, "_shexp"))
