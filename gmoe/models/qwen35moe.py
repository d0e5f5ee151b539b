"""Qwen3.5-MoE: three gated delta nets, then full attention with a gate; a shared expert behind a sigmoid gate."""

from gmoe.layers.attention import QueryGatedGQA
from gmoe.layers.delta_net import DeltaNet
from gmoe.layers.ffn import GatedFFN, MoEFFN
from gmoe.layers.recurrent_cache import SSM_KEYS
from gmoe.layers.rope import rope
from gmoe.layers.router import Gating, topk
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, Decoder, FeedForward


class Model(Decoder):
    """`qwen35moe`."""

    keys = SSM_KEYS | {"attention.recurrent_layers", "full_attention_interval"}
    recurrent_layer: type[DeltaNet] = DeltaNet

    def attention(self, w: Weights, layer: int) -> Attention:
        """Which blocks are recurrent the file says, by block or by an interval."""
        if self.hparams.is_recurrent(layer):
            return self.recurrent_layer(w)
        w.need("attn_q_norm.weight", "attn_k_norm.weight")
        return QueryGatedGQA(w, rope(w, "neox"), scale=w.hparams.attention_scale)

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """Always renormalised and never scaled, as llama.cpp does."""
        return MoEFFN(w, topk(w, Gating.SOFTMAX, renormalize=True), self.dispatch, shared=GatedFFN(w))
