"""Laguna: heads gated through a softplus; windows with plain rope, full blocks with YaRN; first blocks dense."""

from gmoe.layers.attention import GatedGQA, causal, sliding
from gmoe.layers.ffn import DenseFFN, ExpertDispatch, MoEFFN
from gmoe.layers.rope import rope
from gmoe.layers.router import Gating, stated
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, Decoder, FeedForward

WINDOW, PATTERN = "attention.sliding_window", "attention.sliding_window_pattern"
SWA = "rope.freq_base_swa", "rope.dimension_count_swa"
HEADS = "attention.head_count", "attention.head_count_kv"


class Model(Decoder):
    """`laguna`."""

    keys = frozenset({PATTERN, *SWA, *HEADS})

    def __init__(self, weights: Weights, dispatch: ExpertDispatch):
        hp = weights.hparams
        if hp.n_swa and SWA[0] not in hp.special:
            weights.refuse(f"laguna.{SWA[0]}", f"required beside {WINDOW}")
        if not hp.n_swa and PATTERN in hp.special:
            weights.refuse(f"laguna.{PATTERN}", f"supported beside {WINDOW}")
        if hp.n_swa and hp.rope_attn_factor != 1.0:
            weights.refuse("laguna.rope.scaling.attn_factor", f"{hp.rope_attn_factor}; only 1 is supported")
        super().__init__(weights, dispatch)

    def attention(self, w: Weights, layer: int) -> Attention:
        """The first of four blocks is full where the file does not say which; both head norms are required."""
        hp = w.hparams
        near = bool(hp.n_swa) and (hp.swa if PATTERN in hp.special else layer % 4 != 0)
        w, mask = (w.window(), sliding(hp.n_swa)) if near else (w, causal)
        w.need("attn_q_norm.weight", "attn_k_norm.weight")
        by_head = w.matrix("attn_gate", hp.n_embd).shape[0] == hp.n_head
        return GatedGQA(w, rope(w, "neox", factors="none"), mask=mask, by_head=by_head, curve="softplus")

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """Sigmoid where the file states no gating function; selection bias and shared expert are required."""
        if layer < w.hparams.n_layer_dense_lead:
            return DenseFFN(w)
        w.need("exp_probs_b.bias")
        return MoEFFN(w, stated(w, Gating.SIGMOID), self.dispatch, shared=DenseFFN(w, "_shexp"))
