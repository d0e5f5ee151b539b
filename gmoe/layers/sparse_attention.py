"""Attention of each query to tokens of its own, chosen among all before it."""

from typing import NamedTuple

import torch
from torch import Tensor

from gmoe.kernels.kv import BLOCK, KvLayer
from gmoe.kernels.ops import Turns, attention
from gmoe.layers.attention import causal

COPIED = 1 << 25  # bytes of tokens that are copied at a time, those of one query at least


class Chosen(NamedTuple):
    """What each of T queries sees."""

    slots: Tensor  # [T, n] int64: where the cache has the tokens, in the order of their positions
    counts: Tensor  # [T] int64, at least 1: the first so many of these


def attend(q: Tensor, layer: KvLayer, chosen: Chosen, scale: float, sinks: Tensor | None = None) -> Tensor:
    """Queries [T, H, dk] over the tokens that are chosen for each -> [T, H, dv], on the CPU; q may be written over.

    A query's bits depend on its own tokens alone, and where these are all before it, they are those of `attention`:
    the tokens are copied to where the kernel takes them for a sequence.
    """
    y = q.new_empty(*q.shape[:2], layer.shape.dv)
    at_once = max(1, COPIED // (chosen.slots.shape[1] * layer.shape.nbytes(layer.kind)))
    for at in range(0, len(q), at_once):
        some = slice(at, at + at_once)
        counts = chosen.counts[some]
        n, blocks = len(counts), -(-int(counts.max()) // BLOCK)
        slots = torch.nn.functional.pad(chosen.slots[some, : blocks * BLOCK], (0, blocks * BLOCK))[:, : blocks * BLOCK]
        tables = torch.arange(n * blocks, dtype=torch.int32).view(n, blocks)
        turns = Turns(counts - 1, tables, counts.int(), torch.arange(n + 1, dtype=torch.int32))
        y[some] = attention(q[some], layer.picked(slots.reshape(-1, BLOCK)), turns, scale, causal, sinks)
    return y


def attend_apart(q: Tensor, layer: KvLayer, chosen: Chosen | Turns, scale: float) -> Tensor:
    """The same where each of the layer's G heads has tokens of its own: `chosen` is of T * G, by query and head.

    As `Turns` of a row each it has blocks of the cache, which are not copied.
    """
    heads = layer.shape.heads
    own = torch.arange(heads, dtype=torch.int32).repeat(len(q))[:, None]
    groups = q.reshape(len(q) * heads, -1, layer.shape.dk)
    if isinstance(chosen, Turns):
        tables = chosen.block_tables * heads + own
        y = attention(groups, layer.apart(), chosen._replace(block_tables=tables), scale, causal, None)
    else:
        slots = (chosen.slots // BLOCK * heads + own) * BLOCK + chosen.slots % BLOCK
        y = attend(groups, layer.apart(), Chosen(slots, chosen.counts), scale)
    return y.view(*q.shape[:2], layer.shape.dv)
