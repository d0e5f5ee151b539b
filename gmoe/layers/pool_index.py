"""An index of pools: so many tokens, one behind the other, have one index key (GLM-5.3-Flash)."""

import torch
from torch import Tensor

from gmoe.kernels.kv import KvShape
from gmoe.kernels.ops import dequantize, store
from gmoe.kernels.state import StateLayer, StateShape
from gmoe.layers.batch import Batch
from gmoe.layers.compressor import join, weighed
from gmoe.layers.kv_cache import KvLayer
from gmoe.layers.linear import beside
from gmoe.layers.norm import LayerNorm
from gmoe.layers.pools import best_pools
from gmoe.layers.row_index import RowIndex
from gmoe.layers.sparse_attention import Chosen
from gmoe.layers.weights import Weights

POOL_KEYS = frozenset(
    f"attention.indexer.{key}" for key in ("head_count", "key_length", "top_k", "kpool", "kpool_select_tail", "types")
)
INDEX_TENSORS = (
    *("indexer.k_norm.weight", "indexer.k_norm.bias", "indexer.proj.weight", "indexer.attn_k.weight"),
    *("indexer.attn_q_b.weight", "indexer_compressor_gate.weight", "indexer_compressor_ape.weight"),
)


class PoolIndex:
    """A pool's key is of each channel a sum of its tokens' keys, by the softmax of gates, which know of their places.

    Of the pools that are complete at a token the best are chosen, and always the tokens behind them.
    """

    def __init__(self, w: Weights):
        hp, d, self.size = w.hparams, w.hparams.n_index, w.hparams.index_pool
        name = f"{hp.architecture}.attention.indexer"
        if not 2 <= self.size <= 1024 or self.size & (self.size - 1) or hp.index_top_k % self.size:
            w.refuse(f"{name}.kpool", f"{self.size}; a power of two from 2 to 1024 that divides top_k is supported")
        if not hp.index_tail:
            w.refuse(f"{name}.kpool_select_tail", "only true is supported: tokens behind the last pool are always seen")
        self.index = RowIndex(w, hp.index_top_k // self.size)
        key, gate = w.linear("indexer.attn_k", hp.n_embd, d), w.linear("indexer_compressor_gate", hp.n_embd, d)
        self.inputs = beside(key, gate, self.index.weights)
        w.need("indexer.k_norm.bias")
        self.norm = LayerNorm(w.norm("indexer.k_norm", n=d), hp.norm_eps or 0.0)
        self.places = dequantize(w.quant("indexer_compressor_ape", shape=(self.size, d)))
        self.shape, self.state_shape = KvShape(1, 0, d, self.size), StateShape(self.size, 2 * d)
        self.chosen: Chosen | None = None  # in this step; None: everything before it is seen

    def choose(self, x: Tensor, low: Tensor, batch: Batch, kept: KvLayer, state: StateLayer) -> None:
        """For the block's input x [T, D] and what maps to its queries; `kept` has the pools' keys afterwards."""
        key, gate, weights = self.inputs(x)
        tokens = torch.cat((self.norm(key), gate + self.places[batch.positions % self.size]), 1)
        spans = join(batch, state, tokens, self.size)
        if len(spans.begins):
            keys = weighed(*spans.tokens.chunk(2, 2))[:, None]
            store(kept, self.shape.row(spans.slots), keys[..., :0], keys)
        ends = (batch.positions + 1) // self.size
        self.chosen = self._best(low, weights, ends, kept, batch) if int(ends.max()) > self.index.most else None

    def _best(self, low: Tensor, weights: Tensor, ends: Tensor, kept: KvLayer, batch: Batch) -> Chosen:
        q = self.index.queries(low).view(-1, self.index.n_head, self.index.width)
        return best_pools(self.index, q, weights, ends, kept, batch)
