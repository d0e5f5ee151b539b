"""dots.llm1: head norms, NeoX rope; first blocks dense; the file states the gating; shared experts."""

from gmoe.layers.attention import GQA
from gmoe.layers.ffn import DenseFFN, MoEFFN
from gmoe.layers.rope import rope
from gmoe.layers.router import Gating, topk
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, Decoder, FeedForward


class Model(Decoder):
    """`dots1`."""

    def attention(self, w: Weights, layer: int) -> Attention:
        """The head norms come with the file."""
        return GQA(w, rope(w, "neox"))

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """Without `expert_gating_func` the file is refused: nobody could say which it was trained with."""
        hp = w.hparams
        if layer < hp.n_layer_dense_lead:
            return DenseFFN(w)
        if hp.gating is Gating.NONE:
            w.refuse("dots1.expert_gating_func", "required by architecture dots1")
        route = topk(hp, hp.gating, renormalize=hp.expert_weights_norm, bias=w.get("exp_probs_b", ".bias"))
        shared = DenseFFN(w, "_shexp") if hp.n_expert_shared else None
        return MoEFFN(w, route, self.dispatch, shared=shared)
