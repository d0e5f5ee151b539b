"""Grok-1 and 2: capped scores of attention, experts with GELU, perhaps a dense part beside them, norms behind all."""

from torch import Tensor

from gmoe.layers.attention import GQA
from gmoe.layers.batch import Batch
from gmoe.layers.dense_beside import DenseBeside
from gmoe.layers.ffn import ExpertDispatch
from gmoe.layers.rope import rope
from gmoe.layers.rows import Cap
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, Decoder, FeedForward


class NormedGQA(GQA):
    """A norm follows."""

    def __init__(self, w: Weights):
        hp = w.hparams
        if not hp.n_head_k == hp.n_head_v == (hp.rope_dimension_count or hp.n_head_k):
            w.refuse("grok.rope.dimension_count", "whole heads are rotated, and values as wide as keys")
        turn = rope(w, "neox", factors="none")
        super().__init__(w, turn, scale=hp.attn_output_scale, cap=hp.attn_softcapping)
        self.after = w.norm("attn_output_norm")

    def __call__(self, x: Tensor, batch: Batch) -> Tensor:
        """x [T, D] -> [T, D]."""
        return self.after(super().__call__(x, batch))


class Model(Decoder):
    """`grok`; routers' logits are not capped, as llama.cpp does not."""

    keys = frozenset(f"{of}_logit_softcapping" for of in ("attn", "router", "final")) | {"attention.output_scale"}

    def __init__(self, weights: Weights, dispatch: ExpertDispatch):
        hp = weights.hparams
        if hp.rope_scaling_type not in ("none", "yarn") and {hp.rope_scaling_factor, hp.rope_scale_linear} - {0.0, 1.0}:
            weights.refuse("grok.rope.scaling.type", f"{hp.rope_scaling_type}; only none and yarn are supported")
        super().__init__(weights, dispatch)
        self.cap = Cap(self.hparams.logit_softcapping, self.device, self.on)
        self.output = self.output.times(self.hparams.logit_scale)

    def attention(self, w: Weights, layer: int) -> Attention:
        """Every block the same."""
        return NormedGQA(w)

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """Always renormalised."""
        return DenseBeside(w, self.dispatch)

    def embedding_scale(self, w: Weights) -> float:
        """The file's."""
        return w.hparams.embedding_scale

    def logits(self, x: Tensor) -> Tensor:
        """Scaled, then capped softly."""
        return self.cap(super().logits(x))
