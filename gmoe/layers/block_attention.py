"""Grouped-query attention with gates to the blocks of tokens that an index chooses (Qwen3.8-Flash-Next)."""

from torch import Tensor

from gmoe.kernels.ops import Rotation
from gmoe.layers.attention import QueryGatedGQA
from gmoe.layers.batch import Batch
from gmoe.layers.block_index import BlockIndex
from gmoe.layers.kv_cache import KeepsBeside
from gmoe.layers.recurrent_cache import RecurrentLayer
from gmoe.layers.sparse_attention import Chosen, attend
from gmoe.layers.weights import Weights


class BlockGQA(QueryGatedGQA, RecurrentLayer, KeepsBeside):
    """Where all tokens are chosen, it is grouped-query attention as any other.

    The cache keeps a key a block beside keys and values, and a state the tokens' whose block is not complete.
    """

    def __init__(self, w: Weights, rope: Rotation):
        w.need("attn_q_norm.weight", "attn_k_norm.weight")
        super().__init__(w, rope)
        self.index = BlockIndex(w, rope)
        self.beside_shape, self.state_shape = self.index.shape, self.index.state_shape
        self.chosen: Chosen | None = None  # in this step

    def attend(self, x: Tensor, batch: Batch) -> Tensor:
        """What the heads give, side by side: x [T, D] -> [T, H * dv]."""
        assert batch.states is not None
        self.chosen = self.index(x, batch, batch.kv.beside[self.layer], batch.states.layers[self.layer])
        return super().attend(x, batch)

    def seen(self, q: Tensor, batch: Batch) -> Tensor:
        """What prepared queries [T, H, dk] see: [T, H, dv]."""
        if self.chosen is None:
            return super().seen(q, batch)
        return attend(q, batch.kv.layers[self.layer], self.chosen, self.scale)
