"""The tokens of pools, of so many each, one behind the other, which an index of their keys chooses."""

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from gmoe.layers.batch import Batch
from gmoe.layers.kv_cache import KvLayer
from gmoe.layers.picked_rows import floats, sequences, slots
from gmoe.layers.row_index import Scores
from gmoe.layers.sparse_attention import Chosen


def best_pools(index: Scores, q: Tensor, weights: Tensor, ends: Tensor, kept: KvLayer, batch: Batch) -> Chosen:
    """The best of the pools that are complete at each token, and always the tokens behind them.

    Queries [T, H, d] and their weights [T, H] are the index's, `ends` [T] says how many pools are complete, and `kept`
    has the keys of pools, by their last tokens.
    """
    most, of, size = index.most, sequences(batch), kept.shape.every
    pools = torch.arange(most).repeat(len(q), 1)
    for seq, (at, end) in enumerate(pairwise(batch.begins)):
        if (n := int(ends[end - 1])) > most:
            last = torch.arange(size - 1, n * size, size)[None]
            keys = floats(kept, kept.shape.row(slots(last, torch.tensor([seq]), batch)[0]), 0, kept.shape.dv)
            pools[at:end] = index.best(q[at:end], weights[at:end], keys, ends[at:end])
    pooled = ends.clamp(max=most) * size
    counts = pooled + (batch.positions + 1) % size
    places = torch.arange(int(counts.max())).expand(len(q), -1)
    inside = pools.gather(1, (places // size).clamp(max=most - 1)) * size + places % size
    behind = (ends * size - pooled)[:, None] + places
    positions = torch.where(places < pooled[:, None], inside, torch.minimum(behind, batch.positions[:, None]))
    lengths = torch.from_numpy(np.array(batch.lengths))[of, None]
    return Chosen(slots(torch.minimum(positions, lengths - 1), of, batch), counts)
