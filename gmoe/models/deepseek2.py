"""DeepSeek-V2 and V3: latent attention; first blocks dense; softmax or sigmoid router, in groups; shared experts."""

from gmoe.layers.ffn import led_by_dense
from gmoe.layers.mla import MLA
from gmoe.layers.rope import rope
from gmoe.layers.router import Gating
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, Decoder, FeedForward


class Model(Decoder):
    """`deepseek2`."""

    def attention(self, w: Weights, layer: int) -> Attention:
        """With or without low-rank queries; `kv_b` whole or as `k_b` and `v_b`."""
        return MLA(w, rope(w, "norm"))

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """Softmax where the file states no gating function, as V2's do not."""
        return led_by_dense(w, own_gating(w.hparams.n_layer, self.n_vocab), self.dispatch)


def own_gating(n_layer: int, n_vocab: int) -> Gating:
    """That of files which do not state it: V2's are softmax, the first of GLM-4.7-Flash sigmoid."""
    return Gating.SIGMOID if n_layer in (47, 48) and n_vocab == 154_880 else Gating.SOFTMAX
