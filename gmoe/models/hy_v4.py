"""Hunyuan 4: streams that never mix; latent attention with gates and sinks, perhaps to what an index chooses."""

from gmoe.layers.ffn import DenseFFN, ExpertDispatch, MoEFFN, under
from gmoe.layers.hyper_connections import StreamSum
from gmoe.layers.identity_connections import IDENTITY_KEYS, IdentityConnection
from gmoe.layers.lightning_index import INDEX_KEYS
from gmoe.layers.router import stated
from gmoe.layers.sink_mla import IndexedSinkMLA, NoIndex, SinkMLA
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, Connection, FeedForward, Streamed

OWN = INDEX_KEYS | {"attention.indexer.types"}


class Model(Streamed):
    """`hy_v4`."""

    keys = IDENTITY_KEYS | OWN | {"swiglu_clamp_exp"}

    def __init__(self, weights: Weights, dispatch: ExpertDispatch):
        hp = weights.hparams
        required = {f"attention.{of}_length_mla": getattr(hp, f"{of}_length_mla") for of in ("key", "value")}
        required |= {"attention.q_lora_rank": hp.q_lora_rank, "expert_gating_func": hp.gating}
        required |= dict.fromkeys((IDENTITY_KEYS | (OWN if OWN & {*hp.special} else set())) - {*hp.special})
        for name, value in sorted(required.items()):
            if not value:
                weights.refuse(f"hy_v4.{name}", "required by architecture hy_v4")
        if hp.yarn_log_multiplier:
            why = f"{hp.yarn_log_multiplier:g}; only 0 is supported"
            weights.refuse("hy_v4.rope.scaling.yarn_log_multiplier", why)
        self.indexed: IndexedSinkMLA | None = None  # the last of the blocks so far that have an index
        super().__init__(weights, dispatch)
        self.gathered = StreamSum(weights)

    def connection(self, w: Weights, part: str) -> Connection:
        """Each stream stays what it is but for what the part gives."""
        return IdentityConnection(w, part)

    def attention(self, w: Weights, layer: int) -> Attention:
        """With an index of its own, or by the last one before it; in a file without any, to everything."""
        if not OWN & {*w.hparams.special}:
            return SinkMLA(w, NoIndex())
        if w.hparams.indexed:
            self.indexed = IndexedSinkMLA(w)
            return self.indexed
        if self.indexed is None:
            w.refuse("hy_v4.attention.indexer.types", "the first block needs an index of its own")
        return SinkMLA(w, self.indexed.index)

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """First blocks dense, without bounds as the shared expert."""
        if layer < w.hparams.n_layer_dense_lead:
            return DenseFFN(w)
        route, bound = stated(w, w.hparams.gating), under(w.hparams.clamp_experts)
        return MoEFFN(w, route, self.dispatch, shared=DenseFFN(w, "_shexp"), activation=bound)
