"""gpt-oss: attention sinks, every other block in a window; biased experts, clamped SwiGLU, softmax after top-k."""

from gmoe.layers.attention import GQA, causal, sliding
from gmoe.layers.ffn import MoEFFN
from gmoe.layers.rope import rope
from gmoe.layers.router import Gating, topk
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, Decoder, FeedForward


class Model(Decoder):
    """`gpt-oss`."""

    def attention(self, w: Weights, layer: int) -> Attention:
        """The even blocks see a window only."""
        mask = sliding(w.hparams.n_swa) if layer % 2 == 0 and w.hparams.n_swa else causal
        return GQA(w, rope(w, "neox"), mask=mask, sinks=w.get("attn_sinks"))

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """The router has a bias; the chosen logits alone make the weights."""
        route = topk(w, Gating.SOFTMAX_WEIGHT, renormalize=False)
        return MoEFFN(w, route, self.dispatch, activation="swiglu_oai")
