"""Maple: Qwen3-MoE's blocks with bounded SwiGLU; blocks in a window have rope, others are full without."""

from gmoe.layers.attention import GQA, causal, sliding
from gmoe.layers.ffn import ExpertDispatch, MoEFFN, under
from gmoe.layers.rope import rope
from gmoe.layers.router import Gating, topk
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, Decoder, FeedForward

PATTERN, BASE, BOUND = "attention.sliding_window_pattern", "rope.freq_base_swa", "swiglu_clamp_exp"


class Model(Decoder):
    """`maple`."""

    keys = frozenset({PATTERN, BASE, BOUND})

    def __init__(self, weights: Weights, dispatch: ExpertDispatch):
        hp = weights.hparams
        for name in (PATTERN, BOUND):
            if name not in hp.special:
                weights.refuse(f"maple.{name}", "required by architecture maple")
        if not hp.n_swa:
            weights.refuse("maple.attention.sliding_window", "required by architecture maple")
        factor, kind = hp.rope_scaling_factor or hp.rope_scale_linear, hp.rope_scaling_type
        if factor not in (0.0, 1.0) and (kind == "none" or hp.rope_freq_base_swa is not None):
            why = f"{factor:g}; supported where rope.scaling.type is not none and there is no {BASE}"
            weights.refuse("maple.rope.scaling.factor", why)  # llama.cpp scales windows of type none too
        super().__init__(weights, dispatch)

    def attention(self, w: Weights, layer: int) -> Attention:
        """Both head norms are required."""
        w.need("attn_q_norm.weight", "attn_k_norm.weight")
        if w.hparams.swa:
            return GQA(w, rope(w, "neox", factors="none"), mask=sliding(w.hparams.n_swa))
        return GQA(w, None, mask=causal)

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """Renormalised and not scaled, whatever the file says."""
        route = topk(w, Gating.SOFTMAX, renormalize=True)
        return MoEFFN(w, route, self.dispatch, activation=under(w.hparams.clamp_experts))
