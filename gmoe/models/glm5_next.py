"""GLM-5.3-Flash: streams; Kimi's delta attention, or latent attention to the best pools; then DeepSeek's plan."""

from gmoe.layers.ffn import DenseFFN, ExpertDispatch, MoEFFN, under
from gmoe.layers.hyper_connections import HYPER_KEYS, HyperConnection, mean
from gmoe.layers.kimi_delta import KDA_KEYS, KimiDelta
from gmoe.layers.pool_index import INDEX_TENSORS, POOL_KEYS
from gmoe.layers.pooled_attention import PooledMLA
from gmoe.layers.router import Gating, stated
from gmoe.layers.sparse_mla import SparseMLA
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, Connection, FeedForward, Streamed

SHARED_BOUND = "swiglu_clamp_shexp"


class Model(Streamed):
    """`glm5-next`."""

    keys = HYPER_KEYS | KDA_KEYS | POOL_KEYS | {"attention.head_count_kv", "swiglu_clamp_exp", SHARED_BOUND}

    def __init__(self, weights: Weights, dispatch: ExpertDispatch):
        hp = weights.hparams
        lengths = {f"{of}_length_mla": getattr(hp, f"{of}_length_mla") for of in ("key", "value")}
        for name, value in ({"q_lora_rank": hp.q_lora_rank, "kv_lora_rank": hp.kv_lora_rank} | lengths).items():
            if not value:
                weights.refuse(f"glm5-next.attention.{name}", "required by architecture glm5-next")
        for key in sorted(HYPER_KEYS - {*hp.special}):
            weights.refuse(f"glm5-next.{key}", "required by architecture glm5-next")
        if hp.rope_dimension_count != 0:
            weights.refuse("glm5-next.rope.dimension_count", f"{hp.rope_dimension_count}; only 0 is supported")
        self.indexed: PooledMLA | None = None  # the last of the blocks so far that have an index
        super().__init__(weights, dispatch)
        self.gathered = mean

    def connection(self, w: Weights, part: str) -> Connection:
        """By Sinkhorn's matrices."""
        return HyperConnection(w, part)

    def attention(self, w: Weights, layer: int) -> Attention:
        """A block without heads of keys has delta attention; of the others some go by the index of one before them."""
        if not w.hparams.n_kv:
            return KimiDelta(w, key_eps=1e-6)
        if w.hparams.indexed:
            self.indexed = PooledMLA(w)
            return self.indexed
        if self.indexed is None:
            w.refuse("glm5-next.attention.indexer.types", "the first block with latent attention needs an index")
        w.skip(*INDEX_TENSORS)
        return SparseMLA(w, None, self.indexed.index)

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """First blocks dense; shared experts and these have the bound of the others where the file states none."""
        hp = w.hparams
        bound = under(hp.clamp_dense if SHARED_BOUND in hp.special else hp.clamp_experts)
        if layer < hp.n_layer_dense_lead:
            return DenseFFN(w, activation=bound)
        w.need("exp_probs_b.bias")
        route, shared = stated(w, Gating.SIGMOID), DenseFFN(w, "_shexp", bound)
        return MoEFFN(w, route, self.dispatch, shared=shared, activation=under(hp.clamp_experts))
