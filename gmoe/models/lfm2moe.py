"""LFM2-MoE: most blocks are short convolutions, the others attention; sigmoid top-k with a bias of the choice."""

from gmoe.layers.attention import GQA
from gmoe.layers.ffn import DenseFFN, MoEFFN
from gmoe.layers.rope import rope
from gmoe.layers.router import Gating, topk
from gmoe.layers.short_conv import ShortConv
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, Decoder, FeedForward


class Model(Decoder):
    """`lfm2moe`."""

    keys = frozenset({"attention.head_count_kv", "shortconv.l_cache"})

    def attention(self, w: Weights, layer: int) -> Attention:
        """A block without heads of keys is a convolution."""
        if not w.hparams.n_kv:
            return ShortConv(w)
        w.need("attn_q_norm.weight", "attn_k_norm.weight")
        return GQA(w, rope(w, "neox"))

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """The first blocks dense; always renormalised, as llama.cpp does."""
        hp = w.hparams
        if layer < hp.n_layer_dense_lead:
            return DenseFFN(w)
        w.need("exp_probs_b.bias")
        bias = w.get("exp_probs_b", ".bias", hp.n_expert)
        return MoEFFN(w, topk(w, hp.gating_or(Gating.SIGMOID), renormalize=True, bias=bias), self.dispatch)
