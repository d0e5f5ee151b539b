"""Attention of each query to rows of its own, picked from the cache, where one row is key and value of all heads."""

from collections.abc import Sequence
from math import gcd
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gmoe.kernels.formats import FORMATS, QuantTensor
from gmoe.kernels.kv import BLOCK, GROUP, KvLayer, KvShape
from gmoe.kernels.ops import Rows, Turns, attention, lay, store
from gmoe.layers.attention import causal
from gmoe.layers.batch import Batch

QUERIES = 8  # whose rows are copied at a time: torch, whose threads would be in the way, has little to do then


class Picked(NamedTuple):
    """For T queries which rows they see of a layer that keeps values alone, for one head."""

    layer: KvLayer
    rows: Tensor  # [T, n] int64, as the layer counts them
    counts: Tensor  # [T] int64: of these so many, from the first on


class PickedRows:
    """The attention of a model, with the room to which it copies rows, so that the kernel finds them as a sequence's.

    A query's bits depend on its own rows alone.
    """

    def __init__(self) -> None:
        self._room: KvLayer | None = None

    def __call__(self, q: Tensor, picks: Sequence[Picked], scale: float, sinks: Tensor | None) -> Tensor:
        """Queries [T, H, d] over the first d numbers of the rows that are picked for them, in order -> [T, H, d]."""
        y = torch.empty_like(q)
        for at in range(0, len(q), QUERIES):
            some = slice(at, at + QUERIES)
            own = [Picked(layer, rows[some], counts[some]) for layer, rows, counts in picks]
            lay(self._some(lay(q[some]), own, scale, sinks), y[some])
        return y

    def _some(self, q: Tensor, picks: Sequence[Picked], scale: float, sinks: Tensor | None) -> Tensor:
        n, width = len(q), q.shape[2]
        counts = torch.stack([pick.counts for pick in picks]).sum(0)
        blocks = -(-int(counts.max()) // BLOCK)
        room, first = self._of(picks[0].layer, width, n * blocks), torch.arange(n) * (blocks * BLOCK)
        for layer, rows, some in picks:
            places = torch.arange(rows.shape[1])
            seen = places < some[:, None]
            values = floats(layer, rows[seen], 0, width)[:, None]
            store(room, (first[:, None] + places)[seen], values, values)
            first = first + some
        tables = torch.arange(n * blocks, dtype=torch.int32).view(n, blocks)
        turns = Turns(counts - 1, tables, counts.int(), torch.arange(n + 1, dtype=torch.int32))
        return attention(q, room, turns, scale, causal, sinks)

    def _of(self, like: KvLayer, width: int, blocks: int) -> KvLayer:
        """Room for so many blocks, whose numbers are as exact as those of a layer."""
        kind = "f32" if like.kind == "q8_0" else like.kind
        room, shape = self._room, KvShape(1, width, width)
        if room is None or room.kind != kind or room.shape != shape or len(room.keys) < blocks:
            room = self._room = KvLayer(shape, blocks, kind)
        return room


def floats(layer: KvLayer, rows: Tensor, begin: int, end: int) -> Tensor:
    """Numbers `begin` to `end` of a layer's values at rows [n]: float32 [n, end - begin]."""
    width = layer.shape.dv
    if layer.value_scales is not None:
        scales = layer.value_scales.flatten(0, 2)[rows].float().repeat_interleave(GROUP, 1)[:, :width]
        return (layer.values.flatten(0, 2)[rows].float() * scales)[:, begin:end].contiguous()
    unit = gcd(begin, end, width)
    parts = layer.values.view(-1, unit)
    table = QuantTensor(parts.view(torch.uint8), FORMATS[layer.kind.upper()], tuple(parts.shape))
    of = rows[:, None] * (width // unit) + torch.arange(begin // unit, end // unit)
    return Rows(table, parts.device)(of.flatten()).view(len(rows), end - begin)


def sequences(batch: Batch) -> Tensor:
    """Whose each row is, [T]."""
    return torch.from_numpy(np.repeat(np.arange(len(batch.tables)), np.diff(batch.begins)))


def slots(positions: Tensor, of: Tensor, batch: Batch) -> Tensor:
    """Where the cache has a sequence's tokens: positions [T, n] of sequences [T] -> [T, n]."""
    return batch.block_tables[of[:, None], positions // BLOCK].long() * BLOCK + positions % BLOCK
