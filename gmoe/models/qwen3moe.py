"""Qwen3-MoE: q and k normed per head, NeoX rope; every block routed, softmax top-k renormalised, no shared expert."""

from gmoe.layers.attention import GQA
from gmoe.layers.ffn import MoEFFN
from gmoe.layers.rope import rope
from gmoe.layers.router import Gating, topk
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, Decoder, FeedForward


class Model(Decoder):
    """`qwen3moe`."""

    def attention(self, w: Weights, layer: int) -> Attention:
        """Both head norms are required."""
        w.need("attn_q_norm.weight", "attn_k_norm.weight")
        return GQA(w, rope(w, "neox"))

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """Renormalised whatever `expert_weights_norm` says, as llama.cpp does."""
        return MoEFFN(w, topk(w, Gating.SOFTMAX, renormalize=True), self.dispatch)
