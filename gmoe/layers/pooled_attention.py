"""Latent attention without positions, to the tokens that an index of pools chooses (GLM-5.3-Flash)."""

from torch import Tensor

from gmoe.layers.batch import Batch
from gmoe.layers.kv_cache import KeepsBeside
from gmoe.layers.pool_index import PoolIndex
from gmoe.layers.recurrent_cache import RecurrentLayer
from gmoe.layers.sparse_mla import SparseMLA
from gmoe.layers.weights import Weights


class PooledMLA(SparseMLA, RecurrentLayer, KeepsBeside):
    """With an index of its own: beside its rows the cache keeps pools' keys, and a state the tokens of the last one."""

    def __init__(self, w: Weights):
        self.pools = PoolIndex(w)
        super().__init__(w, None, self.pools)
        self.beside_shape, self.state_shape = self.pools.shape, self.pools.state_shape

    def __call__(self, x: Tensor, batch: Batch) -> Tensor:
        """x [T, D] -> [T, D]; this step's latent rows, and the keys of pools, are in the cache afterwards."""
        assert batch.states is not None
        kept, state = batch.kv.beside[self.layer], batch.states.layers[self.layer]
        low = self.low(x)
        self.pools.choose(x, low, batch, kept, state)
        return self.attend(x, low, batch)
