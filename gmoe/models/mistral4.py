"""Mistral Small 4: latent attention, queries with a temperature; first blocks dense, softmax router, shared experts."""

from math import isclose

from gmoe.layers.ffn import ExpertDispatch, led_by_dense
from gmoe.layers.mla import MLA
from gmoe.layers.rope import rope
from gmoe.layers.router import Gating
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, Decoder, FeedForward

LOG_MULTIPLIER = 0.1  # as converters write an `mscale_all_dim` of 1, with which YaRN is what it is in deepseek2


class Model(Decoder):
    """`mistral4`."""

    def __init__(self, weights: Weights, dispatch: ExpertDispatch):
        hp = weights.hparams
        scaled = hp.rope_scaling_type != "none" and hp.rope_scaling_factor not in (0.0, 1.0)
        usual = hp.rope_scaling_type == "yarn" and isclose(hp.yarn_log_multiplier, LOG_MULTIPLIER, rel_tol=1e-6)
        if scaled and not usual:
            why = f"{hp.yarn_log_multiplier:g} and {hp.rope_scaling_type}; only {LOG_MULTIPLIER} and yarn are supported"
            weights.refuse("mistral4.rope.scaling.yarn_log_multiplier", why)
        super().__init__(weights, dispatch)

    def attention(self, w: Weights, layer: int) -> Attention:
        """With or without low-rank queries; `kv_b` whole or as `k_b` and `v_b`."""
        return MLA(w, rope(w, "norm"))

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """Softmax where the file states no gating function."""
        return led_by_dense(w, Gating.SOFTMAX, self.dispatch)
