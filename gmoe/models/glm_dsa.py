"""GLM-5 and 5.2: latent attention to tokens that a lightning indexer chooses, some blocks by an earlier block's."""

from gmoe.layers.ffn import ExpertDispatch, led_by_dense
from gmoe.layers.lightning_index import INDEX_KEYS
from gmoe.layers.rope import rope
from gmoe.layers.router import Gating
from gmoe.layers.sparse_mla import IndexedMLA, SparseMLA
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, Decoder, FeedForward

TYPES = "attention.indexer.types"
INDEX = [f"indexer.{name}.weight" for name in ("k_norm", "proj", "attn_k", "attn_q_b")] + ["indexer.k_norm.bias"]


class Model(Decoder):
    """`glm-dsa`."""

    keys = INDEX_KEYS | {TYPES}

    def __init__(self, weights: Weights, dispatch: ExpertDispatch):
        hp = weights.hparams
        if hp.rope_scaling_type != "none" and {hp.rope_scaling_factor, hp.rope_scale_linear} - {0.0, 1.0}:
            weights.refuse("glm-dsa.rope.scaling.type", f"{hp.rope_scaling_type}; only none is supported")
        self.indexed: IndexedMLA | None = None  # the last of the blocks so far that have an index
        super().__init__(weights, dispatch)

    def attention(self, w: Weights, layer: int) -> Attention:
        """With an index of its own, or by the last one before it."""
        if self.hparams.is_indexed(layer):
            self.indexed = IndexedMLA(w, "norm")
            return self.indexed
        if self.indexed is None:
            w.refuse(f"glm-dsa.{TYPES}", "the first block needs an index of its own")
        w.skip(*INDEX)
        return SparseMLA(w, rope(w, "norm"), self.indexed.index)

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """First blocks dense; sigmoid where the file states no gating function."""
        return led_by_dense(w, Gating.SIGMOID, self.dispatch)
