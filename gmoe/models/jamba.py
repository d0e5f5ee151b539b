"""Jamba: Mamba-1 with norms inside, in some blocks attention without positions; experts where a block has a router."""

from gmoe.layers.attention import GQA
from gmoe.layers.channel_space import MAMBA_KEYS, NormedMamba
from gmoe.layers.ffn import DenseFFN, MoEFFN
from gmoe.layers.router import Gating, topk
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, Decoder, FeedForward


class Model(Decoder):
    """`jamba`."""

    keys = MAMBA_KEYS | {"attention.head_count_kv"}

    def attention(self, w: Weights, layer: int) -> Attention:
        """What keeps keys is attention."""
        return GQA(w, None) if w.hparams.n_kv else NormedMamba(w)

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """Softmax, neither renormalised nor scaled, whatever the file says."""
        if not w.has("ffn_gate_inp"):
            return DenseFFN(w)
        return MoEFFN(w, topk(w, Gating.SOFTMAX, renormalize=False), self.dispatch)
