"""SmallThinker: the router reads what the block begins with; ReGLU experts, every fourth block full without rope."""

from torch import Tensor

from gmoe.layers.attention import GQA, causal, sliding
from gmoe.layers.batch import Batch
from gmoe.layers.ffn import ExpertDispatch, MoEFFN
from gmoe.layers.norm import residual
from gmoe.layers.rope import rope
from gmoe.layers.router import topk
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, FeedForward, Woven

WINDOW = 4096  # llama.cpp's, whatever the file says


class Model(Woven):
    """`smallthinker`."""

    def __init__(self, weights: Weights, dispatch: ExpertDispatch):
        hp = weights.hparams
        if hp.n_swa not in (0, WINDOW):
            weights.refuse("smallthinker.attention.sliding_window", f"{hp.n_swa}; only {WINDOW} is supported")
        if not hp.gating:
            weights.refuse("smallthinker.expert_gating_func", "required by architecture smallthinker")
        super().__init__(weights, dispatch)

    def attention(self, w: Weights, layer: int) -> Attention:
        """Without windows, and in llama.cpp in a model of four blocks, all are rotated."""
        hp, period = w.hparams, 4
        rotated = not hp.n_swa or layer % period or hp.n_layer == period
        mask = sliding(hp.n_swa) if hp.n_swa and layer % period else causal
        return GQA(w, rope(w, "neox") if rotated else None, mask=mask)

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """Always renormalised."""
        w.need("ffn_norm.weight")
        return MoEFFN(w, topk(w, w.hparams.gating, renormalize=True), self.dispatch, activation="reglu")

    def block(self, layer: int, x: Tensor, batch: Batch) -> Tensor:
        """Routed before the attention."""
        experts = self.ffn[layer]
        assert isinstance(experts, MoEFFN)
        routing = experts.routing(x)
        y = self.attn[layer](self.attn_norm[layer](x), batch)
        x, given = self.ffn_norm[layer].after(x, y, 1.0)
        return residual(x, experts.sum(given, routing, given))
