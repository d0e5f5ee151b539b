"""An index of blocks of tokens for each group of heads: a block counts as much as its best token (MiniMax-M3)."""

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from gmoe.kernels.formats import FORMATS, QuantTensor
from gmoe.kernels.kv import BLOCK, KvShape
from gmoe.kernels.ops import Rotation, Turns, lay, matmul, store
from gmoe.layers.batch import Batch
from gmoe.layers.kv_cache import KvLayer
from gmoe.layers.linear import beside
from gmoe.layers.picked_rows import floats, sequences, slots
from gmoe.layers.row_index import QUERIES, SCORES
from gmoe.layers.sparse_attention import Chosen
from gmoe.layers.weights import Weights

GROUP_KEYS = frozenset(
    f"attention.indexer.{key}" for key in ("head_count", "key_length", "top_k", "block_size", "local_blocks")
)


class GroupIndex:
    """A group's query scores all tokens by a key of each, which the groups have in common.

    The blocks at a token are its own and those before; the last `local` are always chosen. Of blocks that count the
    same the earlier is chosen, where llama.cpp leaves that to its sort.
    """

    def __init__(self, w: Weights, turn: Rotation):
        hp = w.hparams
        self.groups, self.width, self.turn = hp.n_kv, hp.n_index, turn
        self.size, self.most, self.local = hp.index_block, hp.index_top_k, hp.index_local
        name = f"{hp.architecture}.attention.indexer"
        if hp.n_index_head != hp.n_kv:
            w.refuse(f"{name}.head_count", f"{hp.n_index_head}; as many as heads of keys, {hp.n_kv}, are needed")
        if self.width < (n_rot := 2 * len(turn.frequencies)):
            w.refuse(f"{name}.key_length", f"{self.width} is less than the {n_rot} that turn")
        if self.size < 1 or self.size & (self.size - 1):
            w.refuse(f"{name}.block_size", f"{self.size}; a power of two is supported")
        if not 0 < self.most or self.local > self.most:
            w.refuse(f"{name}.top_k", f"{self.most}; at least one, and no fewer than local_blocks, are needed")
        queries = w.linear("indexer.q_proj", hp.n_embd, self.groups * self.width)
        self.inputs = beside(queries, w.linear("indexer.k_proj", hp.n_embd, self.width))
        self.q_norm, self.k_norm = (w.norm(f"indexer.{part}_norm", n=self.width) for part in "qk")
        self.shape = KvShape(1, 0, self.width)  # of the keys

    def __call__(self, x: Tensor, batch: Batch, kept: KvLayer) -> Chosen | Turns | None:
        """For the block's input x [T, D], by token and group; None: all before it is seen. `kept` has the keys then."""
        q, key = self.inputs(x)
        key = self.turn(self.k_norm(key)[:, None], batch.positions)
        store(kept, batch.slot_mapping, key[..., :0], key)
        # Of a step that is recorded the lengths say how far others may go that run as it did.
        return self._best(q, batch, kept) if max(batch.lengths) > self.most * self.size else None

    def _best(self, q: Tensor, batch: Batch, kept: KvLayer) -> Chosen | Turns:
        q = self.turn(self.q_norm(q.reshape(-1, self.width)).view(-1, self.groups, self.width), batch.positions)
        blocks = torch.arange(self.most).repeat(len(q), self.groups, 1)
        for seq, (at, end) in enumerate(pairwise(batch.begins)):
            if (n := batch.lengths[seq]) > self.most * self.size:
                keys = floats(kept, slots(torch.arange(n)[None], torch.tensor([seq]), batch)[0], 0, self.width)
                blocks[at:end] = self.best(q[at:end], keys, batch.positions[at:end])
        begins = blocks.flatten(0, 1) * self.size
        ends = (batch.positions + 1).repeat_interleave(self.groups)[:, None]
        counts = (ends - begins).clamp(0, self.size).sum(1)  # of tokens up to the query's own
        of = sequences(batch).repeat_interleave(self.groups)
        last = torch.from_numpy(np.array(batch.lengths))[of, None] - 1
        return (self._tokens if self.size % BLOCK else self._tables)(begins, counts, of, last, batch)

    def best(self, q: Tensor, keys: Tensor, positions: Tensor) -> Tensor:
        """Of the blocks of keys [n, d] those of queries [T, G, d] at positions [T]: [T, G, most], ascending.

        Where there are fewer blocks at a token, they are all among them, before others.
        """
        table = QuantTensor(keys.view(torch.uint8), FORMATS["F32"], tuple(keys.shape))
        n, count = len(keys), -(-len(keys) // self.size)
        best, step = [], max(1, min(QUERIES, SCORES // (self.groups * n)))
        for at in range(0, len(q), step):
            own = positions[at : at + step, None] // self.size
            scores = matmul(lay(q[at : at + step]).flatten(0, 1), table, activations="float").view(-1, self.groups, n)
            behind = torch.arange(n) > positions[at : at + step, None]
            scores.masked_fill_(behind[:, None], -torch.inf)
            padded = torch.nn.functional.pad(scores, (0, count * self.size - n), value=-torch.inf)
            value, away = padded.view(-1, self.groups, count, self.size).amax(3), own - torch.arange(count)
            value.masked_fill_(((away >= 0) & (away < self.local))[:, None], torch.inf)
            order = value.argsort(dim=-1, descending=True, stable=True)[..., : self.most]
            best.append(order.sort(-1).values)
        return torch.cat(best)

    def _tokens(self, begins: Tensor, counts: Tensor, of: Tensor, last: Tensor, batch: Batch) -> Chosen:
        places = (begins[:, :, None] + torch.arange(self.size)).flatten(1)[:, : int(counts.max())]
        return Chosen(slots(torch.minimum(places, last), of, batch), counts)

    def _tables(self, begins: Tensor, counts: Tensor, of: Tensor, last: Tensor, batch: Batch) -> Turns:
        """Blocks that are whole ones of the cache are seen where they are."""
        places = (begins[:, :, None] // BLOCK + torch.arange(self.size // BLOCK)).flatten(1)
        tables = batch.block_tables[of[:, None], torch.minimum(places, last // BLOCK)]
        return Turns(counts - 1, tables, counts.int(), torch.arange(len(of) + 1, dtype=torch.int32))
