"""Compressed rows: several tokens made one row, by weights of each channel's own (DeepSeek-V4)."""

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
        gates = gates.masked_fill(~there[:, :, None], -torch.inf).transpose(1, 2).contiguous()
        values = values.masked_fill(~there[:, :, None], 0.0).transpose(1, 2).contiguous()
        return self.norm((torch.softmax(gates, -1) * values).sum(-1))


class Spans(NamedTuple):
    """Which rows a step completes: n of them, each of so many tokens."""

    begins: Tensor  # [n] the position of its first token
    slots: Tensor  # [n] the slot of its last token
    places: Tensor  # [n, span] where its tokens are among the rows that `join` gives
    there: Tensor  # [n, span] false for those before the first token


def join(batch: Batch, state: StateLayer, rows: Tensor, ratio: int, turns: int) -> tuple[Tensor, Spans]:
    """The tokens that sequences kept [S * taps] and then those of this step [T, C], and which rows these complete.

    The last of each sequence are in the state afterwards.
    """
    assert batch.slots is not None
    taps, (source, target, kept, kept_after) = state.shape.taps, batch.slots.astype(np.int64)
    n_seq, span = len(source), turns * ratio
    both = torch.cat((state.inputs[torch.from_numpy(np.maximum(source, 0))].flatten(0, 1), rows))
    begins, slots, places = [], [], []
    for seq, (at, end) in enumerate(zip(batch.begins, batch.begins[1:], strict=False)):
        first = int(batch.numbers[1, at])
        where = np.concatenate((np.arange(taps) + seq * taps, np.arange(at, end) + n_seq * taps))
        for place, after in ((target[seq], end - at), (kept[seq], kept_after[seq])):
            if place >= 0:
                state.inputs[place] = both[torch.from_numpy(where[after : after + taps])]
        ends = np.arange(first // ratio + 1, (first + end - at) // ratio + 1) * ratio
        begins.append(ends - ratio)
        slots.append(batch.numbers[2, at + ends - 1 - first])
        places.append(where[ends[:, None] - span + np.arange(span) - first + taps])
    begin = np.concatenate(begins)
    there = begin[:, None] + ratio - span + np.arange(span) >= 0
    numbers = (begin, np.concatenate(slots), np.concatenate(places), there)
    return both, Spans(*map(torch.from_numpy, numbers))
