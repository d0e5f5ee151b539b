"""DeepSeek-V3.2: V3 whose latent attention sees the tokens that a lightning indexer chooses."""

from gmoe.layers.ffn import ExpertDispatch, led_by_dense
from gmoe.layers.lightning_index import INDEX_KEYS
from gmoe.layers.rope import only_whole_yarn
from gmoe.layers.router import Gating
from gmoe.layers.sparse_mla import IndexedMLA
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, Decoder, FeedForward


class Model(Decoder):
    """`deepseek32`."""

    keys = INDEX_KEYS

    def __init__(self, weights: Weights, dispatch: ExpertDispatch):
        only_whole_yarn(weights)
        if weights.hparams.gating is Gating.NONE:
            weights.refuse("deepseek32.expert_gating_func", "required by architecture deepseek32")
        super().__init__(weights, dispatch)

    def attention(self, w: Weights, layer: int) -> Attention:
        """An index of each block's own."""
        w.need("indexer.k_norm.bias")
        return IndexedMLA(w, "neox")

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """First blocks dense."""
        return led_by_dense(w, w.hparams.gating, self.dispatch)
