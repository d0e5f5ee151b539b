"""Mellum 2: Qwen3-MoE's blocks, three in a window, the fourth full; only full ones scale their rope."""

from gmoe.layers.attention import GQA, causal, sliding
from gmoe.layers.ffn import ExpertDispatch, MoEFFN
from gmoe.layers.rope import rope
from gmoe.layers.router import Gating, topk
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, Decoder, FeedForward

PATTERN, BASE = "attention.sliding_window_pattern", "rope.freq_base_swa"


class Model(Decoder):
    """`mellum`."""

    keys = frozenset({PATTERN, BASE})

    def __init__(self, weights: Weights, dispatch: ExpertDispatch):
        hp = weights.hparams
        if hp.swa and not hp.n_swa:
            weights.refuse("mellum.attention.sliding_window", f"required beside {PATTERN}")
        if hp.rope_freq_base_swa not in (None, hp.rope_freq_base):  # llama.cpp reads it and does not use it
            weights.refuse(f"mellum.{BASE}", f"{hp.rope_freq_base_swa:g}; only that of the other blocks is supported")
        super().__init__(weights, dispatch)

    def attention(self, w: Weights, layer: int) -> Attention:
        """Without a window all blocks are full, and every fourth where the file does not say which."""
        hp = w.hparams
        w.need("attn_q_norm.weight", "attn_k_norm.weight")
        near = bool(hp.n_swa) and (hp.swa if PATTERN in hp.special else (layer + 1) % 4 != 0)
        turn = rope(w, "neox", factors="none", scaled=not near)
        return GQA(w, turn, mask=sliding(hp.n_swa) if near else causal)

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """Renormalised whatever `expert_weights_norm` says, as llama.cpp does."""
        return MoEFFN(w, topk(w, Gating.SOFTMAX, renormalize=True), self.dispatch)
