"""Qwen3-VL-MoE, its text: Qwen3-MoE's blocks; of a token's three coordinates text has but one, so rope is plain."""

from gmoe.layers.attention import GQA
from gmoe.layers.ffn import MoEFFN
from gmoe.layers.rope import rope
from gmoe.layers.router import Gating, topk
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, Decoder, FeedForward


class Model(Decoder):
    """`qwen3vlmoe`."""

    def attention(self, w: Weights, layer: int) -> Attention:
        """Both head norms are required; pairs behind the sections turn as well, which in llama.cpp stand still."""
        w.need("attn_q_norm.weight", "attn_k_norm.weight")
        return GQA(w, rope(w, "neox", factors="none"))

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """Renormalised whatever `expert_weights_norm` says, as llama.cpp does."""
        return MoEFFN(w, topk(w, Gating.SOFTMAX, renormalize=True), self.dispatch)
