"""Ling 2.0 and Ring: fused q, k, v, head norms, partial NeoX rope; first blocks dense; sigmoid router in groups."""

from gmoe.layers.attention import GQA
from gmoe.layers.ffn import DenseFFN, MoEFFN
from gmoe.layers.rope import rope
from gmoe.layers.router import Gating, topk
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, Decoder, FeedForward


class Model(Decoder):
    """`bailingmoe2`."""

    def attention(self, w: Weights, layer: int) -> Attention:
        """The head norms come with the file."""
        return GQA(w, rope(w, "neox"))

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """Weights come from the unbiased scores and are scaled."""
        hp = w.hparams
        if layer < hp.n_layer_dense_lead:
            return DenseFFN(w)
        route = topk(
            hp, hp.gating_or(Gating.SIGMOID), renormalize=hp.expert_weights_norm, bias=w.get("exp_probs_b", ".bias")
        )
        shared = DenseFFN(w, "_shexp") if hp.n_expert_shared else None
        return MoEFFN(w, route, self.dispatch, shared=shared)
