"""GroveMoE: Qwen3-MoE whose chunks of experts have a small one each, which reads what the experts gave."""

from gmoe.layers.attention import GQA
from gmoe.layers.chunk_experts import CHUNK_KEYS, ChunkedFFN
from gmoe.layers.ffn import ExpertDispatch
from gmoe.layers.rope import rope
from gmoe.layers.router import Gating, topk
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, Decoder, FeedForward


class Model(Decoder):
    """`grovemoe`."""

    keys = CHUNK_KEYS

    def __init__(self, weights: Weights, dispatch: ExpertDispatch):
        hp = weights.hparams
        for key in ("expert_group_scale", "experts_per_group"):
            if key not in hp.special:
                weights.refuse(f"grovemoe.{key}", "required by architecture grovemoe")
        if not hp.n_head_k == hp.n_head_v == (hp.rope_dimension_count or hp.n_head_k):
            weights.refuse("grovemoe.rope.dimension_count", "whole heads are rotated, and values as wide as keys")
        if hp.n_expert_groups > 1:
            weights.refuse("grovemoe.expert_group_count", f"{hp.n_expert_groups}; only 1 is supported")
        super().__init__(weights, dispatch)

    def attention(self, w: Weights, layer: int) -> Attention:
        """Both head norms are required."""
        w.need("attn_q_norm.weight", "attn_k_norm.weight")
        return GQA(w, rope(w, "neox", factors="none"))

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """Renormalised and never scaled, whatever the file says."""
        return ChunkedFFN(w, topk(w, Gating.SOFTMAX, renormalize=True), self.dispatch)
