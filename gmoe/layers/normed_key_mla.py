"""Latent attention with gated heads whose key is normed before it is turned, in windows or by an index (dots3-note)."""

from torch import Tensor

from gmoe.kernels.ops import Mask, Rotation
from gmoe.layers.attention import causal
from gmoe.layers.mla import GatedMLA
from gmoe.layers.sparse_mla import IndexedMLA
from gmoe.layers.weights import Weights


class NormedKeyMLA(GatedMLA):
    """Sees what `mask` shows of the tokens before it."""

    def __init__(self, w: Weights, turn: Rotation, mask: Mask = causal):
        w.need("attn_k_b.weight", "attn_v_b.weight")
        super().__init__(w, turn)
        self.mask, self.key_norm = mask, w.norm("attn_k_norm", n=self.n_rot)

    def placed(self, key: Tensor) -> Tensor:
        """What positions count for of a key [T, 1, n_rot], normed."""
        return self.key_norm(key)


class IndexedKeyMLA(IndexedMLA, NormedKeyMLA):
    """Sees what an index of its own chooses."""
