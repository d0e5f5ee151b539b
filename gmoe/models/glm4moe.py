"""GLM-4.5: bias on q, k and v, head norms in the large one, partial NeoX rope; sigmoid router with selection bias."""

from gmoe.layers.attention import GQA
from gmoe.layers.ffn import led_by_dense
from gmoe.layers.rope import rope
from gmoe.layers.router import Gating
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, Decoder, FeedForward


class Model(Decoder):
    """`glm4moe`."""

    def attention(self, w: Weights, layer: int) -> Attention:
        """`rope.dimension_count` is half of the head."""
        return GQA(w, rope(w, "neox"))

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """Sigmoid where the file states no gating function; the selection bias is required."""
        if layer >= w.hparams.n_layer_dense_lead:
            w.need("exp_probs_b.bias")
        return led_by_dense(w, Gating.SIGMOID, self.dispatch)
