"""DeepSeek-MoE: interleaved rope; first blocks dense; softmax top-k not renormalised; shared experts."""

from gmoe.layers.attention import GQA
from gmoe.layers.ffn import DenseFFN, MoEFFN
from gmoe.layers.rope import rope
from gmoe.layers.router import Gating, topk
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, Decoder, FeedForward


class Model(Decoder):
    """`deepseek`."""

    def attention(self, w: Weights, layer: int) -> Attention:
        """Plain grouped-query attention."""
        return GQA(w, rope(w, "norm", factors="none"))

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """Never renormalised and always softmax, whatever the file says, as llama.cpp does."""
        if layer < w.hparams.n_layer_dense_lead:
            return DenseFFN(w)
        route = topk(w, Gating.SOFTMAX, renormalize=False, scale=w.hparams.expert_weights_scale)
        return MoEFFN(w, route, self.dispatch, shared=DenseFFN(w, "_shexp"))
