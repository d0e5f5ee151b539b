"""Kimi-Linear: Kimi's delta attention, in some blocks latent attention without positions; then DeepSeek-V3's plan."""

from gmoe.layers.ffn import DenseFFN, ExpertDispatch, MoEFFN
from gmoe.layers.kimi_delta import KimiDelta
from gmoe.layers.mla import MLA
from gmoe.layers.router import topk
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, Decoder, FeedForward


class Model(Decoder):
    """`kimi-linear`."""

    keys = frozenset({"attention.head_count_kv", "kda.head_dim", "ssm.conv_kernel"})

    def __init__(self, weights: Weights, dispatch: ExpertDispatch):
        hp = weights.hparams
        lengths = {f"attention.{of}_length_mla": getattr(hp, f"{of}_length_mla") for of in ("key", "value")}
        for name, value in ({"expert_gating_func": hp.gating} | lengths).items():
            if not value:
                weights.refuse(f"kimi-linear.{name}", "required by architecture kimi-linear")
        if hp.q_lora_rank:
            weights.refuse("kimi-linear.attention.q_lora_rank", f"{hp.q_lora_rank}; only 0 is supported")
        super().__init__(weights, dispatch)

    def attention(self, w: Weights, layer: int) -> Attention:
        """A block without heads of keys has delta attention."""
        if not w.hparams.n_kv:
            return KimiDelta(w)
        w.need("attn_k_b.weight", "attn_v_b.weight")
        return MLA(w, None)

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """The first blocks dense; always renormalised, whatever the file says, and always with a shared expert."""
        hp = w.hparams
        if layer < hp.n_layer_dense_lead:
            return DenseFFN(w)
        bias = w.vector("exp_probs_b", hp.n_expert, ".bias")
        route = topk(w, hp.gating, renormalize=True, bias=bias, scale=hp.expert_weights_scale)
        return MoEFFN(w, route, self.dispatch, shared=DenseFFN(w, "_shexp"))
