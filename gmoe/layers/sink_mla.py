"""Latent attention with sinks, and a gate for each number that heads give (Hunyuan 4)."""

from torch import Tensor

from gmoe.layers.batch import Batch
from gmoe.layers.kv_cache import KeepsBeside
from gmoe.layers.lightning_index import LightningIndex
from gmoe.layers.mla import WideGatedMLA
from gmoe.layers.rope import Tail, rope
from gmoe.layers.sparse_attention import Chosen
from gmoe.layers.sparse_mla import Index, SparseMLA
from gmoe.layers.weights import Weights


class NoIndex:
    """The index of a model that has none."""

    chosen: Chosen | None = None


class SinkMLA(SparseMLA, WideGatedMLA):
    """Sees what an earlier block's index chose, or, by `NoIndex`, everything.

    Nothing grows with positions, and with a scaling only what is turned.
    """

    def __init__(self, w: Weights, index: Index):
        super().__init__(w, rope(w, "norm", factors="none"), index)
        self.scale, self.growth = self.n_head_k**-0.5, 0.0
        self.sinks = w.vector("attn_sinks", self.n_head)


class IndexedSinkMLA(SinkMLA, KeepsBeside):
    """The same, with an index of its own, whose keys the cache has beside the latent rows.

    Of its queries and keys the last numbers are turned, and the norm of keys has the eps of all norms.
    """

    def __init__(self, w: Weights):
        self.lightning = LightningIndex(w, Tail(rope(w, "norm", factors="none")), w.eps)
        w.need("indexer.k_norm.bias")
        super().__init__(w, self.lightning)
        self.beside_shape = self.lightning.shape

    def __call__(self, x: Tensor, batch: Batch) -> Tensor:
        """x [T, D] -> [T, D], on the CPU in the memory of x; this step's latent rows and keys are in the cache then."""
        low = self.low(x)
        self.lightning.choose(x, low, batch, batch.kv.beside[self.layer])
        return self.attend(x, low, batch)
