"""dots.llm1: head norms, NeoX rope; first blocks dense; the file states the gating; shared experts."""

from gmoe.layers.attention import GQA
from gmoe.layers.ffn import led_by_dense
from gmoe.layers.rope import rope
from gmoe.layers.router import Gating
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, Decoder, FeedForward


class Model(Decoder):
    """`dots1`."""

    def attention(self, w: Weights, layer: int) -> Attention:
        """Both head norms are required."""
        w.need("attn_q_norm.weight", "attn_k_norm.weight")
        return GQA(w, rope(w, "neox"))

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """Without `expert_gating_func` the file is refused: nobody could say which it was trained with."""
        if w.hparams.gating is Gating.NONE:
            w.refuse("dots1.expert_gating_func", "required by architecture dots1")
        return led_by_dense(w, w.hparams.gating, self.dispatch)
