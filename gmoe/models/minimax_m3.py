"""MiniMax-M3: heads normed, partial NeoX rope; first blocks dense, behind them a shared expert and chosen blocks."""

from gmoe.layers.attention import GQA
from gmoe.layers.ffn import DenseFFN, ExpertDispatch, MoEFFN
from gmoe.layers.group_attention import GroupGQA
from gmoe.layers.group_index import GROUP_KEYS
from gmoe.layers.rope import rope
from gmoe.layers.router import Gating, stated
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, Decoder, FeedForward

ACTIVATION = "swiglu_oai"


class Model(Decoder):
    """`minimax-m3`."""

    keys = GROUP_KEYS

    def __init__(self, weights: Weights, dispatch: ExpertDispatch):
        if weights.hparams.gating is Gating.NONE:
            weights.refuse("minimax-m3.expert_gating_func", "required by architecture minimax-m3")
        super().__init__(weights, dispatch)

    def attention(self, w: Weights, layer: int) -> Attention:
        """Both head norms are required; the first blocks have no index."""
        w.need("attn_q_norm.weight", "attn_k_norm.weight")
        turn = rope(w, "neox", factors="none")
        return GQA(w, turn) if layer < w.hparams.n_layer_dense_lead else GroupGQA(w, turn)

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """SwiGLU as gpt-oss has it everywhere; selection bias and shared expert are required."""
        if layer < w.hparams.n_layer_dense_lead:
            return DenseFFN(w, activation=ACTIVATION)
        w.need("exp_probs_b.bias")
        shared = DenseFFN(w, "_shexp", ACTIVATION)
        return MoEFFN(w, stated(w, w.hparams.gating), self.dispatch, shared=shared, activation=ACTIVATION)
