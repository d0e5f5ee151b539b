"""Grouped-query attention of each group to the blocks of tokens that an index chooses for it (MiniMax-M3)."""

from torch import Tensor

from gmoe.kernels.ops import Rotation, Turns
from gmoe.layers.attention import GQA
from gmoe.layers.batch import Batch
from gmoe.layers.group_index import GroupIndex
from gmoe.layers.kv_cache import KeepsBeside
from gmoe.layers.sparse_attention import Chosen, attend_apart
from gmoe.layers.weights import Weights


class GroupGQA(GQA, KeepsBeside):
    """Where all tokens are chosen, it is grouped-query attention as any other; the cache has the index's keys too."""

    def __init__(self, w: Weights, rope: Rotation):
        if w.on is not None:
            w.refuse("general.architecture", "runs on the CPU, not on a device yet; say --device cpu")
        super().__init__(w, rope)
        self.index = GroupIndex(w, rope)
        self.beside_shape = self.index.shape
        self.chosen: Chosen | Turns | None = None  # in this step

    def attend(self, x: Tensor, batch: Batch) -> Tensor:
        """What the heads give, side by side: x [T, D] -> [T, H * dv]."""
        self.chosen = self.index(x, batch, batch.kv.beside[self.layer])
        return super().attend(x, batch)

    def seen(self, q: Tensor, batch: Batch) -> Tensor:
        """What prepared queries [T, H, dk] see: [T, H, dv]."""
        if self.chosen is None:
            return super().seen(q, batch)
        return attend_apart(q, batch.kv.layers[self.layer], self.chosen, self.scale)
