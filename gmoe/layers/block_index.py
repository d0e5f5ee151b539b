"""An index of blocks: so many tokens, one behind the other, are chosen together, by the mean of their keys."""

import torch
from torch import Tensor

from gmoe.kernels.kv import KvShape
from gmoe.kernels.ops import Rotation, store
from gmoe.kernels.state import StateLayer, StateShape
from gmoe.layers.batch import Batch
from gmoe.layers.compressor import join
from gmoe.layers.kv_cache import KvLayer
from gmoe.layers.linear import beside
from gmoe.layers.pools import best_pools
from gmoe.layers.row_index import Scores
from gmoe.layers.sparse_attention import Chosen
from gmoe.layers.weights import Weights

BLOCK_KEYS = frozenset(f"attention.indexer.{key}" for key in ("head_count", "key_length", "top_k")) | {
    "attention.compress_ratios"
}
BLOCK_TENSORS = tuple(f"indexer.{part}_{what}.weight" for part in "qk" for what in ("proj", "norm"))
LARGEST = 64


class BlockIndex(Scores):
    """Of the blocks that are complete at a token the best are chosen, and always the tokens behind them.

    llama.cpp chooses as many tokens whatever there is behind the last complete block, and takes what is left of them
    from the next best block, as its sort happens to have them; other implementations do as is done here.
    """

    def __init__(self, w: Weights, turn: Rotation):
        hp, self.size = w.hparams, w.hparams.compress_ratio
        name = f"{hp.architecture}.attention"
        if self.size > LARGEST or self.size & (self.size - 1) or hp.index_top_k % self.size:
            why = f"{self.size}; a power of two up to {LARGEST} that divides indexer.top_k is supported"
            w.refuse(f"{name}.compress_ratios", why)
        super().__init__(w, hp.index_top_k // self.size)
        if self.width < (n_rot := 2 * len(turn.frequencies)):
            w.refuse(f"{name}.indexer.key_length", f"{self.width} is less than the {n_rot} that turn")
        queries = w.linear("indexer.q_proj", hp.n_embd, self.n_head * self.width)
        self.inputs, self.turn = beside(queries, w.linear("indexer.k_proj", hp.n_embd, self.width)), turn
        self.q_norm, self.k_norm = (w.norm(f"indexer.{part}_norm", n=self.width) for part in "qk")
        self.shape, self.state_shape = KvShape(1, 0, self.width, self.size), StateShape(self.size, self.width)

    def __call__(self, x: Tensor, batch: Batch, kept: KvLayer, state: StateLayer) -> Chosen | None:
        """For the block's input x [T, D]; None: everything before is seen. `kept` has the blocks' keys afterwards."""
        q, key = self.inputs(x)
        spans = join(batch, state, key, self.size)
        if len(spans.begins):
            mean = spans.tokens[:, 0]
            for token in range(1, self.size):
                mean = mean + spans.tokens[:, token]
            keys = self.turn(self.k_norm(mean / self.size)[:, None], spans.begins)
            store(kept, self.shape.row(spans.slots), keys[..., :0], keys)
        ends = (batch.positions + 1) // self.size
        return self._best(q, ends, kept, batch) if int(ends.max()) > self.most else None

    def _best(self, q: Tensor, ends: Tensor, kept: KvLayer, batch: Batch) -> Chosen:
        q = self.turn(self.q_norm(q.reshape(-1, self.width)).view(-1, self.n_head, self.width), batch.positions)
        return best_pools(self, q, torch.ones(q.shape[:2]), ends, kept, batch)
