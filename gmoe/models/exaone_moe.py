"""K-EXAONE: blocks in a window with rope, others full without; q and k normed per head, sigmoid router."""

from gmoe.layers.attention import GQA, causal, sliding
from gmoe.layers.ffn import ExpertDispatch, led_by_dense
from gmoe.layers.rope import rope
from gmoe.layers.router import Gating
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, Decoder, FeedForward

PATTERN = "attention.sliding_window_pattern"


class Model(Decoder):
    """`exaone-moe`."""

    keys = frozenset({PATTERN})

    def __init__(self, weights: Weights, dispatch: ExpertDispatch):
        if not weights.hparams.n_swa:
            weights.refuse("exaone-moe.attention.sliding_window", "required by architecture exaone-moe")
        super().__init__(weights, dispatch)

    def attention(self, w: Weights, layer: int) -> Attention:
        """Every fourth block is full where the file does not say which."""
        hp = w.hparams
        w.need("attn_q_norm.weight", "attn_k_norm.weight", "ffn_norm.weight")
        if hp.swa if PATTERN in hp.special else (layer + 1) % 4:
            return GQA(w, rope(w, "neox"), mask=sliding(hp.n_swa))
        return GQA(w, None, mask=causal)

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """Sigmoid where the file states no gating function."""
        return led_by_dense(w, Gating.SIGMOID, self.dispatch)
