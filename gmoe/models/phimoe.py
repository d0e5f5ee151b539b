"""Phi-3.5-MoE as llama.cpp has it: RMS norms with bias, LongRoPE, biases everywhere, softmax top-k renormalised."""

from gmoe.layers.attention import GQA
from gmoe.layers.ffn import ExpertDispatch, MoEFFN
from gmoe.layers.rope import rope
from gmoe.layers.router import Gating, topk
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, Decoder, FeedForward


class Model(Decoder):
    """`phimoe`."""

    def __init__(self, weights: Weights, dispatch: ExpertDispatch):
        weights.need("output_norm.bias", "output.bias")
        super().__init__(weights, dispatch)

    def attention(self, w: Weights, layer: int) -> Attention:
        """All biases are required; rope factors come with the file."""
        maps = ("attn_qkv",) if w.has("attn_qkv") else ("attn_q", "attn_k", "attn_v")
        w.need(*(f"{name}.bias" for name in ("attn_norm", *maps, "attn_output", "ffn_norm")))
        return GQA(w, rope(w, "neox"))

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """The model was trained with SparseMixer; at inference llama.cpp renormalises the softmax."""
        return MoEFFN(w, topk(w, Gating.SOFTMAX, renormalize=True), self.dispatch)
