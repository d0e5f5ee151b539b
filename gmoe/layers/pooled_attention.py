"""Latent attention without positions, to the tokens that an index of pools chooses (GLM-5.3-Flash)."""

from torch import Tensor

from gmoe.layers.batch import Batch
from gmoe.layers.kv_cache import KeepsBeside
from gmoe.layers.mla import MLA
from gmoe.layers.picked_rows import Picked, PickedRows
from gmoe.layers.pool_index import PoolIndex
from gmoe.layers.recurrent_cache import RecurrentLayer
from gmoe.layers.weights import Weights


class PooledMLA(MLA):
    """Sees what the index of an earlier block chose; where that is all, it is latent attention as any other."""

    def __init__(self, w: Weights, index: PoolIndex):
        super().__init__(w, None)
        self.index = index
        self.attend_picked = w.shared("picked rows", PickedRows)

    def mixed(self, query: Tensor, batch: Batch) -> Tensor:
        """What queries [T, H, n_lora] see of the latent rows: -> [T, H, n_lora]."""
        chosen = self.index.chosen
        if chosen is None:
            return super().mixed(query, batch)
        return self.attend_picked(query, [Picked(batch.kv.layers[self.layer], *chosen)], self.scale, None)


class IndexedMLA(PooledMLA, RecurrentLayer, KeepsBeside):
    """The same, with an index of its own: beside its rows the cache keeps pools' keys, and a state what makes these.

    Of a sequence the state has the tokens whose pool is not complete.
    """

    def __init__(self, w: Weights):
        super().__init__(w, PoolIndex(w))
        self.beside_shape, self.state_shape = self.index.shape, self.index.state_shape

    def __call__(self, x: Tensor, batch: Batch) -> Tensor:
        """x [T, D] -> [T, D]; this step's latent rows, and the keys of pools, are in the cache afterwards."""
        assert batch.states is not None
        kept, state = batch.kv.beside[self.layer], batch.states.layers[self.layer]
        low = self.low(x)
        self.index.choose(x, low, batch, kept, state)
        return self.attend(x, low, batch)
