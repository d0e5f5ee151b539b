"""Granite 4 hybrids: Granite-MoE whose blocks without heads of keys are Mamba-2."""

from gmoe.layers.ffn import DenseFFN
from gmoe.layers.recurrent_cache import SSM_KEYS
from gmoe.layers.state_space import Mamba2
from gmoe.layers.weights import Weights
from gmoe.models import granitemoe
from gmoe.models.decoder import Attention, FeedForward


class Model(granitemoe.Model):
    """`granitehybrid`."""

    keys = SSM_KEYS | {"attention.head_count_kv"}

    def attention(self, w: Weights, layer: int) -> Attention:
        """What keeps keys is attention."""
        return super().attention(w, layer) if w.hparams.n_kv else Mamba2(w)

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """The smallest are dense."""
        return super().feed_forward(w, layer) if w.hparams.n_expert else DenseFFN(w)
