"""Attention of each query to rows of its own, picked from the cache, where one row is key and value of all heads."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gmoe.kernels.kv import BLOCK, GROUP, KvLayer
from gmoe.kernels.ops import Turns, attention
from gmoe.layers.attention import causal

QUERIES = 32  # whose rows are copied at a time


class Picked(NamedTuple):
    """For T queries which rows they see of a layer that keeps values alone, for one head."""

    layer: KvLayer
    rows: Tensor  # [T, n] int64, as the layer counts them
    counts: Tensor  # [T] int64: of these so many, from the first on


def attend(q: Tensor, picks: Sequence[Picked], scale: float, sinks: Tensor | None) -> Tensor:
    """Queries [T, H, d] over the first d numbers of the rows that are picked for them, in order -> [T, H, d].

    A query's bits depend on its own rows alone: they are copied to where the kernel takes them for a sequence.
    """
    y = torch.empty_like(q)
    for at in range(0, len(q), QUERIES):
        some = slice(at, at + QUERIES)
        own = [Picked(layer, rows[some], counts[some]) for layer, rows, counts in picks]
        y[some] = _attend(q[some], own, scale, sinks)
    return y


def _attend(q: Tensor, picks: Sequence[Picked], scale: float, sinks: Tensor | None) -> Tensor:
    n, width = len(q), q.shape[2]
    counts = torch.stack([pick.counts for pick in picks]).sum(0)
    blocks = -(-int(counts.max()) // BLOCK)
    like = picks[0].layer
    values = torch.zeros(n * blocks * BLOCK, width, dtype=like.values.dtype)
    scales = None if like.value_scales is None else torch.zeros(len(values), -(-width // GROUP), dtype=torch.float16)
    first = torch.arange(n) * (blocks * BLOCK)
    for layer, rows, some in picks:
        places = torch.arange(rows.shape[1])
        seen = places < some[:, None]
        to, rows = (first[:, None] + places)[seen], rows[seen]
        values[to] = layer.values.flatten(0, 2)[rows, :width]
        if scales is not None and layer.value_scales is not None:
            scales[to] = layer.value_scales.flatten(0, 2)[rows, : scales.shape[1]]
        first = first + some
    tables = torch.arange(n * blocks, dtype=torch.int32).view(n, blocks)
    turns = Turns(counts - 1, tables, counts.int(), torch.arange(n + 1, dtype=torch.int32))
    return attention(q, KvLayer.of_rows(like.kind, values, scales), turns, scale, causal, sinks)
