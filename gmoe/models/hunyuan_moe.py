"""Hunyuan-A13B: NeoX rope first and head norms after it; softmax top-k renormalised; one shared expert."""

from torch import Tensor

from gmoe.layers.attention import GQA
from gmoe.layers.ffn import DenseFFN, MoEFFN
from gmoe.layers.rope import rope
from gmoe.layers.router import Gating, topk
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, Decoder, FeedForward


class RotatedThenNormed(GQA):
    """Queries and keys are rotated and then normed."""

    def prepare(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The reverse of everybody else's order."""
        assert self.rope and self.q_norm and self.k_norm
        return self.q_norm(self.rope(q, positions)), self.k_norm(self.rope(k, positions))


class Model(Decoder):
    """`hunyuan-moe`."""

    def attention(self, w: Weights, layer: int) -> Attention:
        """Both head norms are required."""
        w.need("attn_q_norm.weight", "attn_k_norm.weight")
        return RotatedThenNormed(w, rope(w, "neox"))

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """Every block routed."""
        route = topk(w, Gating.SOFTMAX, renormalize=True)
        return MoEFFN(w, route, self.dispatch, shared=DenseFFN(w, "_shexp"))
