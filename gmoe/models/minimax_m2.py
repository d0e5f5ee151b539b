"""MiniMax-M2: q and k normed over all heads, partial NeoX rope; sigmoid router with selection bias, renormalised."""

from gmoe.layers.attention import GQA
from gmoe.layers.ffn import MoEFFN
from gmoe.layers.rope import rope
from gmoe.layers.router import Gating, topk
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, Decoder, FeedForward


class Model(Decoder):
    """`minimax-m2`."""

    def attention(self, w: Weights, layer: int) -> Attention:
        """Both norms are required, and span all heads."""
        w.need("attn_q_norm.weight", "attn_k_norm.weight")
        return GQA(w, rope(w, "neox"), across=True)

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """The selection bias is required."""
        hp = w.hparams
        w.need("exp_probs_b.bias")
        bias = w.get("exp_probs_b", ".bias", hp.n_expert)
        return MoEFFN(w, topk(w, hp.gating_or(Gating.SIGMOID), renormalize=True, bias=bias), self.dispatch)
