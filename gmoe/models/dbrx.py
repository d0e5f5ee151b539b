"""DBRX: layer norms, queries, keys and values clamped before their rotation, softmax top-k renormalised."""

from torch import Tensor

from gmoe.layers.attention import GQA
from gmoe.layers.batch import Batch
from gmoe.layers.ffn import ExpertDispatch, MoEFFN
from gmoe.layers.norm import LayerNorm, RMSNorm
from gmoe.layers.rope import rope
from gmoe.layers.router import Gating, topk
from gmoe.layers.rows import Clamp
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, Decoder, FeedForward

CLAMP = "attention.clamp_kqv"


class ClampedGQA(GQA):
    """None of the numbers of queries, keys and values is further from zero than the file allows."""

    def __init__(self, w: Weights):
        super().__init__(w, rope(w, "neox"))
        self.clamp = Clamp(max(0.0, w.hparams.clamp_kqv), w.device, w.on)

    def attend(self, x: Tensor, batch: Batch) -> Tensor:
        """What the heads give, side by side: x [T, D] -> [T, H * dv]."""
        q, k, v = map(self.clamp, self.qkv(x))
        return self.over(q.view(-1, self.n_head, self.n_head_k), k, v, batch)


class Model(Decoder):
    """`dbrx`."""

    keys = frozenset({CLAMP})

    def __init__(self, weights: Weights, dispatch: ExpertDispatch):
        hp = weights.hparams
        if CLAMP not in hp.special or hp.norm_eps is None:
            weights.refuse(f"dbrx.{CLAMP}", "required by architecture dbrx, with attention.layer_norm_epsilon")
        self.eps = hp.norm_eps
        super().__init__(weights, dispatch)
        self.attn_norm = [LayerNorm(norm, self.eps) for norm in self.attn_norm]
        self.output_norm = LayerNorm(self.output_norm, self.eps)

    def attention(self, w: Weights, layer: int) -> Attention:
        """One map of all three."""
        w.need("attn_qkv.weight")
        return ClampedGQA(w)

    def second_norm(self, w: Weights) -> RMSNorm:
        """Behind attention."""
        return LayerNorm(w.norm("attn_output_norm"), self.eps)

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """Always renormalised."""
        return MoEFFN(w, topk(w, Gating.SOFTMAX, renormalize=True), self.dispatch)
