"""Cohere 2 MoE: attention and experts beside each other behind one norm; windows with rope, full blocks without."""

from torch import Tensor

from gmoe.layers.attention import GQA, causal, sliding
from gmoe.layers.batch import Batch
from gmoe.layers.ffn import ExpertDispatch, MoEFFN, led_by_dense
from gmoe.layers.norm import Bare, LayerNorm, RMSNorm, residual
from gmoe.layers.rope import rope
from gmoe.layers.router import Gating
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, FeedForward, Woven

PATTERN = "attention.sliding_window_pattern"


class Model(Woven):
    """`cohere2moe`."""

    keys = frozenset({PATTERN})

    def __init__(self, weights: Weights, dispatch: ExpertDispatch):
        hp = weights.hparams
        if not hp.n_swa:
            weights.refuse("cohere2moe.attention.sliding_window", "required by architecture cohere2moe")
        super().__init__(weights, dispatch)
        self.output = self.output.times(hp.logit_scale)
        if not hp.rms_eps:
            eps = hp.norm_eps or 0.0
            self.attn_norm = [LayerNorm(norm, eps) for norm in self.attn_norm]
            self.output_norm = LayerNorm(self.output_norm, eps)

    def attention(self, w: Weights, layer: int) -> Attention:
        """The first of four blocks is full where the file does not say which; the dense ones are rotated as well."""
        hp = w.hparams
        near = hp.swa if PATTERN in hp.special else layer % 4 != 0
        turn = rope(w, "norm") if near or layer < hp.n_layer_dense_lead else None
        return GQA(w, turn, mask=sliding(hp.n_swa) if near else causal)

    def second_norm(self, w: Weights) -> RMSNorm:
        """There is none."""
        return Bare(w.on)

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """Sigmoid where the file states no gating function."""
        return led_by_dense(w, Gating.SIGMOID, self.dispatch)

    def block(self, layer: int, x: Tensor, batch: Batch) -> Tensor:
        """Routed and shared experts count half where there are both."""
        normed, part = self.attn_norm[layer](x), self.ffn[layer]
        both = isinstance(part, MoEFFN) and part.shared is not None
        y = part(normed)
        return residual(x, residual(self.attn[layer](normed, batch), y, 0.5 if both else 1.0))
