"""DeepSeek-V2 and V3: latent attention; first blocks dense; softmax or sigmoid router, in groups; shared experts."""

from gmoe.layers.ffn import DenseFFN, MoEFFN
from gmoe.layers.mla import MLA
from gmoe.layers.router import Gating, topk
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, Decoder, FeedForward


class Model(Decoder):
    """`deepseek2`."""

    def attention(self, w: Weights, layer: int) -> Attention:
        """With or without low-rank queries; `kv_b` whole or as `k_b` and `v_b`."""
        return MLA(w)

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """Softmax where the file states no gating function."""
        hp = w.hparams
        if layer < hp.n_layer_dense_lead:
            return DenseFFN(w)
        route = topk(
            hp, hp.gating_or(Gating.SOFTMAX), renormalize=hp.expert_weights_norm, bias=w.get("exp_probs_b", ".bias")
        )
        shared = DenseFFN(w, "_shexp") if hp.n_expert_shared else None
        return MoEFFN(w, route, self.dispatch, shared=shared)
