"""Phi-3.5-MoE as llama.cpp has it: RMS norms with bias, LongRoPE, biases everywhere, softmax top-k renormalised."""

from gmoe.layers.attention import GQA
from gmoe.layers.ffn import MoEFFN
from gmoe.layers.rope import rope
from gmoe.layers.router import Gating, topk
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, Decoder, FeedForward


class Model(Decoder):
    """`phimoe`."""

    def attention(self, w: Weights, layer: int) -> Attention:
        """Biases and rope factors come with the file."""
        return GQA(w, rope(w, "neox"))

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """The model was trained with SparseMixer; at inference llama.cpp renormalises the softmax."""
        return MoEFFN(w, topk(w, Gating.SOFTMAX, renormalize=True), self.dispatch)
