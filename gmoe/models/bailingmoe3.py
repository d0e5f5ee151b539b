"""Ling 3.0: Kimi's delta attention, in some blocks latent attention with a gate for each head; then DeepSeek's plan."""

from gmoe.layers.ffn import DenseFFN, ExpertDispatch, MoEFFN, within
from gmoe.layers.kimi_delta import KDA_KEYS, WideDelta
from gmoe.layers.mla import GatedMLA
from gmoe.layers.rope import in_sections, rope
from gmoe.layers.router import stated
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, Decoder, FeedForward

BOUNDS = "swiglu_clamp_exp", "swiglu_clamp_shexp"


class Model(Decoder):
    """`bailingmoe3`."""

    keys = KDA_KEYS | {"kda.safe_gate", "attention.head_count_kv", *BOUNDS}

    def __init__(self, weights: Weights, dispatch: ExpertDispatch):
        hp = weights.hparams
        required = {f"attention.{of}_length_mla": getattr(hp, f"{of}_length_mla") for of in ("key", "value")}
        required |= {"expert_gating_func": hp.gating, "kda.gate_lower_bound": hp.kda_floor is not None}
        for name, value in required.items():
            if not value:
                weights.refuse(f"bailingmoe3.{name}", "required by architecture bailingmoe3")
        if not hp.kda_safe_gate:
            weights.refuse("bailingmoe3.kda.safe_gate", "only true is supported")
        if hp.yarn_log_multiplier:
            why = f"{hp.yarn_log_multiplier}; only 0 is supported"
            weights.refuse("bailingmoe3.rope.scaling.yarn_log_multiplier", why)
        super().__init__(weights, dispatch)

    def attention(self, w: Weights, layer: int) -> Attention:
        """A block without heads of keys has delta attention; files that also see images pair halves."""
        if not w.hparams.n_kv:
            return WideDelta(w)
        w.need("attn_k_b.weight", "attn_v_b.weight")
        return GatedMLA(w, rope(w, "neox" if in_sections(w) else "norm", factors="none"))

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """First blocks dense, with the bound of shared experts; always a selection bias and a shared expert."""
        hp = w.hparams
        bound = within(hp.clamp_dense)
        if layer < hp.n_layer_dense_lead:
            return DenseFFN(w, activation=bound)
        w.need("exp_probs_b.bias")
        route, shared = stated(w, hp.gating), DenseFFN(w, "_shexp", bound)
        return MoEFFN(w, route, self.dispatch, shared=shared, activation=within(hp.clamp_experts))
