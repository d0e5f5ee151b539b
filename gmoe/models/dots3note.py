"""dots3-note: latent attention with gated heads, in windows of other widths or by an index; then DeepSeek's plan."""

from gmoe.layers.attention import sliding
from gmoe.layers.ffn import ExpertDispatch, led_by_dense
from gmoe.layers.lightning_index import INDEX_KEYS
from gmoe.layers.normed_key_mla import IndexedKeyMLA, NormedKeyMLA
from gmoe.layers.rope import rope
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, Decoder, FeedForward

WIDTHS = {f"attention.{name}" for name in ("kv_lora_rank_swa", "key_length_mla_swa", "value_length_mla_swa")}
REQUIRED = INDEX_KEYS | WIDTHS | {"attention.sliding_window_pattern", "attention.indexer.types", "rope.freq_base_swa"}


class Model(Decoder):
    """`dots3note`."""

    keys = REQUIRED | {"attention.head_count", "attention.key_length_swa", "attention.value_length_swa"}

    def __init__(self, weights: Weights, dispatch: ExpertDispatch):
        hp = weights.hparams
        for key in sorted(REQUIRED - {*hp.special}):
            weights.refuse(f"dots3note.{key}", "required by architecture dots3note")
        for key, value in {"attention.sliding_window": hp.n_swa, "expert_gating_func": hp.gating}.items():
            if not value:
                weights.refuse(f"dots3note.{key}", "required by architecture dots3note")
        if hp.rope_scaling_type != "none" and {hp.rope_scaling_factor, hp.rope_scale_linear} - {0.0, 1.0}:
            weights.refuse("dots3note.rope.scaling.type", f"{hp.rope_scaling_type}; only none is supported")
        super().__init__(weights, dispatch)

    def attention(self, w: Weights, layer: int) -> Attention:
        """What is no window has an index."""
        hp = w.hparams
        if hp.indexed == hp.swa:
            w.refuse("dots3note.attention.indexer.types", "only blocks without a window have an index")
        if hp.swa:
            return NormedKeyMLA(w, rope(w, "norm"), sliding(hp.n_swa))
        w.need("indexer.k_norm.bias")
        return IndexedKeyMLA(w, "neox")

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """Where it is not dense, always a selection bias and a shared expert."""
        if layer >= w.hparams.n_layer_dense_lead:
            w.need("exp_probs_b.bias", "ffn_up_shexp.weight")
        return led_by_dense(w, w.hparams.gating, self.dispatch)
