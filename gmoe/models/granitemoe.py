"""Granite-MoE: scaled embedding, residual, attention and logits; softmax over the chosen top-k."""

from gmoe.layers.attention import GQA
from gmoe.layers.ffn import DenseFFN, ExpertDispatch, MoEFFN
from gmoe.layers.rope import rope
from gmoe.layers.router import Gating, topk
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, Decoder, FeedForward


class Model(Decoder):
    """`granitemoe`."""

    def __init__(self, weights: Weights, dispatch: ExpertDispatch):
        super().__init__(weights, dispatch)
        self.output = self.output.times(1.0 / self.hparams.logit_scale)

    def attention(self, w: Weights, layer: int) -> Attention:
        """`attention.scale` takes the place of one over the root of the width; rope can be switched off by the file."""
        hp = w.hparams
        return GQA(w, rope(w, "norm") if hp.rope_finetuned else None, scale=hp.attention_scale)

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """A shared expert where the file has one."""
        shared = DenseFFN(w, "_shexp") if w.has("ffn_up_shexp") else None
        return MoEFFN(w, topk(w, Gating.SOFTMAX, renormalize=True), self.dispatch, shared=shared)

    def embedding_scale(self, w: Weights) -> float:
        """As the file says."""
        return w.hparams.embedding_scale
