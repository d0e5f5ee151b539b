"""Kimi-K3: as Kimi-Linear, with gates, between kept sums of its blocks; routed experts in a narrower space."""

from torch import Tensor

from gmoe.layers.ffn import DenseFFN, ExpertDispatch, MoEFFN, situ
from gmoe.layers.kept_sums import KEPT_KEYS, KeptSums, mix
from gmoe.layers.kimi_delta import KDA_KEYS, WideGateDelta
from gmoe.layers.latent import LatentFFN
from gmoe.layers.mla import MLA, WideGatedMLA
from gmoe.layers.router import stated
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, Connection, FeedForward, Streamed

REQUIRED = KEPT_KEYS | {"activation.situ_beta", "activation.situ_linear_beta"}


class Model(Streamed):
    """`kimi-k3`."""

    keys = REQUIRED | KDA_KEYS | {"attention.head_count_kv", "expert_latent_length"}

    def __init__(self, weights: Weights, dispatch: ExpertDispatch):
        hp = weights.hparams
        required = {f"attention.{of}_length_mla": getattr(hp, f"{of}_length_mla") for of in ("key", "value")}
        required |= {"expert_gating_func": hp.gating} | {key: key in hp.special for key in sorted(REQUIRED)}
        for name, value in required.items():
            if not value:
                weights.refuse(f"kimi-k3.{name}", "required by architecture kimi-k3")
        if hp.situ_bound <= 0.0:
            why = f"{hp.situ_bound}; only numbers above 0 are supported"
            weights.refuse("kimi-k3.activation.situ_beta", why)
        super().__init__(weights, dispatch)
        self.gathered = mix(weights, "output_res_score")

    def connection(self, w: Weights, part: str) -> Connection:
        """By the sums that are kept."""
        return KeptSums(w, part)

    def spread(self, x: Tensor) -> Tensor:
        """Embedded rows [T, D] -> the first sum [T, 1, D]."""
        return x[:, None]

    def attention(self, w: Weights, layer: int) -> Attention:
        """A block without heads of keys has delta attention; the gate of latent attention may be missing."""
        if not w.hparams.n_kv:
            return WideGateDelta(w)
        w.need("attn_k_b.weight", "attn_v_b.weight")
        return WideGatedMLA(w, None) if w.has("attn_gate") else MLA(w, None)

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """First blocks dense; always a selection bias, a shared expert where the file has it."""
        hp, curve = w.hparams, situ(w.hparams.situ_bound, w.hparams.situ_bound_up)
        if layer < hp.n_layer_dense_lead:
            return DenseFFN(w, activation=curve)
        w.need("exp_probs_b.bias")
        shared = DenseFFN(w, "_shexp", curve) if w.has("ffn_gate_shexp") else None
        routed = LatentFFN if hp.n_latent else MoEFFN
        return routed(w, stated(w, hp.gating), self.dispatch, shared=shared, activation=curve)
