"""GLM-4.5: bias on q, k and v, head norms in the large one, partial NeoX rope; sigmoid router with selection bias."""

from gmoe.layers.attention import GQA
from gmoe.layers.ffn import DenseFFN, MoEFFN
from gmoe.layers.rope import rope
from gmoe.layers.router import Gating, topk
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, Decoder, FeedForward


class Model(Decoder):
    """`glm4moe`."""

    def attention(self, w: Weights, layer: int) -> Attention:
        """`rope.dimension_count` is half of the head."""
        return GQA(w, rope(w, "neox"))

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """First blocks dense; sigmoid where the file states no gating function."""
        hp = w.hparams
        if layer < hp.n_layer_dense_lead:
            return DenseFFN(w)
        route = topk(
            hp, hp.gating_or(Gating.SIGMOID), renormalize=hp.expert_weights_norm, bias=w.get("exp_probs_b", ".bias")
        )
        shared = DenseFFN(w, "_shexp") if hp.n_expert_shared else None
        return MoEFFN(w, route, self.dispatch, shared=shared)
