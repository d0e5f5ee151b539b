"""MiMo-V2-Flash: windows with sinks, keys and rope of their own; what attention adds is scaled; sigmoid router."""

from gmoe.layers.attention import GQA, causal, sliding
from gmoe.layers.ffn import DenseFFN, ExpertDispatch, MoEFFN
from gmoe.layers.norm import RMSNorm, Weighed
from gmoe.layers.rope import rope
from gmoe.layers.router import Gating, topk
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, Decoder, FeedForward

PATTERN, BASE = "attention.sliding_window_pattern", "rope.freq_base_swa"


class Model(Decoder):
    """`mimo2`."""

    keys = frozenset({PATTERN, BASE, "attention.head_count_kv", "attention.value_scale"})

    def __init__(self, weights: Weights, dispatch: ExpertDispatch):
        if not {PATTERN, BASE} <= {*weights.hparams.special} or not weights.hparams.n_swa:
            weights.refuse(f"mimo2.{PATTERN}", f"required by architecture mimo2, with attention.sliding_window, {BASE}")
        super().__init__(weights, dispatch)

    def attention(self, w: Weights, layer: int) -> Attention:
        """A block has sinks where the file has them."""
        hp = w.hparams
        mask = sliding(hp.n_swa) if hp.swa else causal
        return GQA(w, rope(w, "neox", factors="none"), mask=mask, sinks=w.get("attn_sinks", n=hp.n_head))

    def second_norm(self, w: Weights) -> RMSNorm:
        """Behind what attention adds, which counts `attention.value_scale` times."""
        return Weighed(w.norm("ffn_norm"), w.hparams.value_scale or 1.0)

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """Experts where the block has a router; always renormalised."""
        hp = w.hparams
        if not w.has("ffn_gate_inp"):
            return DenseFFN(w)
        route = topk(w, Gating.SIGMOID, renormalize=True, bias=w.get("exp_probs_b", ".bias", hp.n_expert))
        return MoEFFN(w, route, self.dispatch)
