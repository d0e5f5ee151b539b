"""Arctic: experts read what the block begins with, through a norm of their own, beside attention and a dense part."""

from torch import Tensor

from gmoe.layers.attention import GQA
from gmoe.layers.batch import Batch
from gmoe.layers.ffn import DenseFFN, ExpertDispatch, MoEFFN
from gmoe.layers.norm import residual
from gmoe.layers.rope import rope
from gmoe.layers.router import Gating, topk
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, FeedForward, Woven


class Model(Woven):
    """`arctic`."""

    def __init__(self, weights: Weights, dispatch: ExpertDispatch):
        super().__init__(weights, dispatch)
        scopes = [weights.block(layer) for layer in range(weights.hparams.n_layer)]
        self.norm_exps = [w.norm("ffn_norm_exps") for w in scopes]
        self.dense = [DenseFFN(w) for w in scopes]

    def attention(self, w: Weights, layer: int) -> Attention:
        """Nothing special."""
        return GQA(w, rope(w, "norm"))

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """Always renormalised."""
        w.need("ffn_norm.weight")
        return MoEFFN(w, topk(w, Gating.SOFTMAX, renormalize=True), self.dispatch)

    def block(self, layer: int, x: Tensor, batch: Batch) -> Tensor:
        """Attention, dense part and, apart from both, experts."""
        routed = self.ffn[layer](self.norm_exps[layer](x))
        x, given = self.ffn_norm[layer].after(x, self.attn[layer](self.attn_norm[layer](x), batch), 1.0)
        return residual(residual(x, self.dense[layer](given)), routed)
