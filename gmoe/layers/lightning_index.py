"""The lightning indexer: which of all tokens before it, by a key of each, a query attends to (DeepSeek-V3.2)."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from gmoe.kernels.kv import KvShape
from gmoe.kernels.ops import store
from gmoe.layers.batch import Batch
from gmoe.layers.kv_cache import KvLayer
from gmoe.layers.linear import beside
from gmoe.layers.norm import LayerNorm
from gmoe.layers.picked_rows import floats, sequences, slots
from gmoe.layers.row_index import RowIndex
from gmoe.layers.sparse_attention import Chosen
from gmoe.layers.weights import Weights

INDEX_KEYS = frozenset(f"attention.indexer.{key}" for key in ("head_count", "key_length", "top_k"))
Turn = Callable[[Tensor, Tensor], Tensor]  # heads [T, H, d] and positions [T] -> heads, perhaps in their memory
EPS = 1e-6  # of the keys' norm; most files do not state it


class LightningIndex:
    """A token's score is as `RowIndex` has it; of tokens with equal scores the earlier is chosen.

    llama.cpp leaves the order of equals to its sort, and turns queries and keys by a Hadamard matrix, with which their
    products are what they were.
    """

    def __init__(self, w: Weights, turn: Turn, eps: float = EPS):
        self.index, d = RowIndex(w, w.hparams.index_top_k), w.hparams.n_index
        self.inputs = beside(w.linear("indexer.attn_k", w.hparams.n_embd, d), self.index.weights)
        self.norm, self.turn = LayerNorm(w.norm("indexer.k_norm", n=d), eps), turn
        self.shape = KvShape(1, 0, d)  # of the keys
        self.chosen: Chosen | None = None  # in this step; None: every token before it is seen

    def choose(self, x: Tensor, low: Tensor, batch: Batch, kept: KvLayer) -> None:
        """For the block's input x [T, D] and what its queries are mapped from; `kept` has the tokens' keys then."""
        key, weights = self.inputs(x)
        key = self.turn(self.norm(key)[:, None], batch.positions)
        store(kept, batch.slot_mapping, key[..., :0], key)
        # Of a step that is recorded the lengths say how far others may go that run as it did.
        self.chosen = self._best(low, weights, kept, batch) if max(batch.lengths) > self.index.most else None

    def _best(self, low: Tensor, weights: Tensor, kept: KvLayer, batch: Batch) -> Chosen:
        most, counts = self.index.most, batch.positions + 1
        q = self.turn(self.index.queries(low).view(-1, self.index.n_head, self.index.width), batch.positions)
        best = torch.arange(most).repeat(len(q), 1)
        for seq, (at, end) in enumerate(pairwise(batch.begins)):
            if (n := int(counts[end - 1])) > most:
                keys = floats(kept, slots(torch.arange(n)[None], torch.tensor([seq]), batch)[0], 0, kept.shape.dv)
                best[at:end] = self.index.best(q[at:end], weights[at:end], keys, counts[at:end])
        of = sequences(batch)
        inside = torch.minimum(best, torch.from_numpy(np.array(batch.lengths))[of, None] - 1)
        return Chosen(slots(inside, of, batch), counts.clamp(max=most))
