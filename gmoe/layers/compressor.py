"""Compressed rows: several tokens made one row, by weights of each channel's own (DeepSeek-V4)."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gmoe.kernels.ops import dequantize
from gmoe.kernels.state import StateLayer
from gmoe.layers.batch import Batch
from gmoe.layers.linear import QuantLinear
from gmoe.layers.weights import Weights

OVERLAPPING = 4  # the ratio whose rows also look at the tokens of the row before


class Compressor:
    """Of each channel a sum of the tokens' numbers, weighted by the softmax of their gates; then a norm.

    A gate counts with a term of the token's place. With overlap a token has two of each: one for the row that it is in,
    and, first, one for the row behind that.
    """

    def __init__(self, w: Weights, name: str, width: int):
        self.ratio, self.width = w.hparams.compress_ratio, width
        self.turns = 1 + (self.ratio == OVERLAPPING)
        n_embd, self.channels = w.hparams.n_embd, self.turns * width
        self.maps: list[QuantLinear] = [w.linear(f"{name}_{what}", n_embd, self.channels) for what in ("kv", "gate")]
        self.places = dequantize(w.quant(f"{name}_ape", shape=(self.ratio, self.channels)))
        self.norm = w.norm(f"{name}_norm", n=width)

    def rows(self, values: Tensor, gates: Tensor, positions: Tensor) -> Tensor:
        """What is to be kept of tokens [T, 2 * channels], of what `maps` gave, [T, channels] each."""
        return torch.cat((values, gates + self.places[positions % self.ratio]), 1)

    def __call__(self, tokens: Tensor, there: Tensor) -> Tensor:
        """Tokens' rows [n, turns * ratio, 2 * channels], and which of them are [n, turns * ratio] -> [n, width]."""
        values, gates = (
            part.reshape(*part.shape[:2], self.turns, -1) for part in torch.split(tokens, self.channels, 2)
        )
        if self.turns == 1:
            values, gates = values[:, :, 0], gates[:, :, 0]
        else:
            values, gates = (
                torch.cat((part[:, : self.ratio, 0], part[:, self.ratio :, 1]), 1) for part in (values, gates)
            )
        gates = gates.masked_fill(~there[:, :, None], -torch.inf)
        return self.norm(weighed(values.masked_fill(~there[:, :, None], 0.0), gates))


def weighed(values: Tensor, gates: Tensor) -> Tensor:
    """Of each channel the sum of tokens' values by the softmax of their gates, [n, tokens, C] each -> [n, C]."""
    values, gates = (part.transpose(1, 2).contiguous() for part in (values, gates))
    weights = torch.exp(gates - gates.amax(-1, keepdim=True))  # softmax would call torch's threads for a few numbers
    return (weights * values).sum(-1) / weights.sum(-1)


class Spans(NamedTuple):
    """Which rows a step completes: n of them, each of so many tokens."""

    tokens: Tensor  # [n, span, C]
    there: Tensor  # [n, span] false for those before the first token
    begins: Tensor  # [n] the position of the first of its own tokens
    slots: Tensor  # [n] the slot of its last token


def join(batch: Batch, state: StateLayer, rows: Tensor, ratio: int) -> Spans:
    """Of tokens' rows [T, C] and those that a state keeps of sequences, what is complete; the state is behind it then.

    A state has the last rows of a sequence, as many as meet in one, each where its position says.
    """
    assert batch.slots is not None
    span, ring = state.shape.taps, state.inputs
    steps = list(zip(pairwise(batch.begins), *batch.slots.tolist(), strict=True))
    begins, slots, fresh, kept = ([np.empty(0, np.int64)] for _ in range(4))
    for (at, end), source, *_ in steps:
        first = int(batch.numbers[1, at])
        ends = np.arange(first // ratio + 1, (first + end - at) // ratio + 1) * ratio
        wanted = ends[:, None] - span + np.arange(span)
        begins.append(ends - ratio)
        slots.append(batch.numbers[2, at + ends - 1 - first])
        fresh.append((at + np.maximum(wanted - first, 0)).ravel())
        kept.append(np.where(wanted < first, max(source, 0) * span + wanted % span, -1).ravel())
    old = torch.from_numpy(np.concatenate(kept))
    tokens = rows[torch.from_numpy(np.concatenate(fresh))]
    if (old >= 0).any():
        tokens[old >= 0] = ring.flatten(0, 1)[old[old >= 0]]
    begin = np.concatenate(begins)
    there = torch.from_numpy(begin[:, None] + ratio - span + np.arange(span) >= 0)
    for (at, end), source, target, place, after in steps:
        for slot, count in ((place, after), (target, end - at)):  # first the one that begins with what is there
            if slot >= 0:
                _go_on(ring, source, slot, rows[at : at + count], int(batch.numbers[1, at]))
    spans = tokens.view(-1, span, tokens.shape[1]), there, torch.from_numpy(begin)
    return Spans(*spans, torch.from_numpy(np.concatenate(slots)))


def _go_on(ring: Tensor, source: int, slot: int, rows: Tensor, first: int) -> None:
    """Let a slot have what the source has, and then rows from the position `first` on."""
    span = ring.shape[1]
    if source not in (slot, -1):
        ring[slot] = ring[source]
    some = np.arange(max(0, len(rows) - span), len(rows))
    ring[slot, torch.from_numpy((first + some) % span)] = rows[len(rows) - len(some) :]
