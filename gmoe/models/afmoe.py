"""Trinity (AFMoE): three blocks in a window with rope, the fourth full without; gated heads, norms behind each part."""

from typing import Any

from torch import Tensor

from gmoe.layers.attention import GatedGQA, causal, sliding
from gmoe.layers.batch import Batch
from gmoe.layers.ffn import MoEFFN, led_by_dense
from gmoe.layers.rope import rope
from gmoe.layers.router import Gating
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, Decoder, FeedForward


class NormedGQA(GatedGQA):
    """A norm follows."""

    def __init__(self, w: Weights, full: bool):
        w.need("attn_q_norm.weight", "attn_k_norm.weight", "ffn_norm.weight")
        mask = causal if full or not w.hparams.n_swa else sliding(w.hparams.n_swa)
        super().__init__(w, None if full else rope(w, "neox"), mask=mask)
        self.after = w.norm("post_attention_norm")

    def __call__(self, x: Tensor, batch: Batch) -> Tensor:
        """x [T, D] -> [T, D]."""
        return self.after(super().__call__(x, batch))


class Routed(MoEFFN):
    """A norm follows."""

    def __init__(self, w: Weights, *args: Any, **options: Any):
        super().__init__(w, *args, **options)
        w.need("exp_probs_b.bias")
        self.after = w.norm("post_ffw_norm")

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, D] -> [T, D]."""
        return self.after(super().__call__(x))


class Model(Decoder):
    """`afmoe`."""

    def attention(self, w: Weights, layer: int) -> Attention:
        """Every fourth block is full."""
        return NormedGQA(w, full=(layer + 1) % 4 == 0)

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """Sigmoid where the file states no gating function."""
        part = led_by_dense(w, Gating.SIGMOID, self.dispatch, Routed)
        if isinstance(part, MoEFFN):
            return part
        after = w.norm("post_ffw_norm")
        return lambda x: after(part(x))

    def embedding_scale(self, w: Weights) -> float:
        """The root of their width."""
        return float(w.hparams.n_embd**0.5)
