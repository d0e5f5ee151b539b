"""Nemotron-H MoE: a block is Mamba-2, or attention without rotation, or experts without gates beside a shared one."""

from gmoe.layers.attention import GQA
from gmoe.layers.ffn import MoEFFN, UngatedFFN
from gmoe.layers.norm import RMSNorm
from gmoe.layers.recurrent_cache import SSM_KEYS
from gmoe.layers.router import Gating, topk
from gmoe.layers.state_space import Mamba2
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Absent, Attention, Decoder, FeedForward


class Model(Decoder):
    """`nemotron_h_moe`."""

    keys = SSM_KEYS | {"attention.head_count_kv", "feed_forward_length"}

    def attention(self, w: Weights, layer: int) -> Attention:
        """What has no width of experts is attention where it keeps keys."""
        if w.hparams.n_ff:
            return Absent()
        return GQA(w, None, scale=w.hparams.attention_scale) if w.hparams.n_kv else Mamba2(w)

    def second_norm(self, w: Weights) -> RMSNorm:
        """There is one."""
        return w.norm("attn_norm")

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """Always sigmoid."""
        hp = w.hparams
        if not hp.n_ff:
            return Absent()
        w.need("exp_probs_b.bias")
        bias, scale = w.get("exp_probs_b", ".bias", hp.n_expert), hp.expert_weights_scale
        route = topk(w, Gating.SIGMOID, renormalize=hp.expert_weights_norm, bias=bias, scale=scale)
        return MoEFFN(w, route, self.dispatch, shared=UngatedFFN(w, "_shexp"), activation="relu2")
