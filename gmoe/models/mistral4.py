"""Mistral Small 4: latent attention, queries with a temperature; first blocks dense, softmax router, shared experts."""

from gmoe.layers.ffn import ExpertDispatch, led_by_dense
from gmoe.layers.mla import MLA
from gmoe.layers.rope import only_whole_yarn, rope
from gmoe.layers.router import Gating
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, Decoder, FeedForward


class Model(Decoder):
    """`mistral4`."""

    def __init__(self, weights: Weights, dispatch: ExpertDispatch):
        only_whole_yarn(weights)
        super().__init__(weights, dispatch)

    def attention(self, w: Weights, layer: int) -> Attention:
        """With or without low-rank queries; `kv_b` whole or as `k_b` and `v_b`."""
        return MLA(w, rope(w, "norm"))

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """Softmax where the file states no gating function."""
        return led_by_dense(w, Gating.SOFTMAX, self.dispatch)
