"""Embeddings of n-grams: rows of one large table, which hashes of a token and those before it name."""

from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gmoe.layers.batch import Batch
from gmoe.layers.weights import Weights

MOST, MOST_HEADS = 8, 64  # tokens of an n-gram, and rows of a token


class Ngrams:
    """Of each length from two tokens to `n` some rows, side by side; a token that ends texts hides those before it.

    The table stays in the file.
    """

    def __init__(self, w: Weights):
        hp, self.n = w.hparams, w.hparams.ngram
        name, width, per = f"{hp.architecture}.ple", hp.n_embd_per_layer, hp.n_ngram_head
        if not 2 <= self.n <= MOST:
            w.refuse(f"{name}.ngram_size", f"{self.n} is outside 2 to {MOST}")
        heads = (self.n - 1) * per
        if not 1 <= heads <= MOST_HEADS or heads * width != hp.n_embd:
            why = f"{heads} rows of {width} numbers in all; at most {MOST_HEADS} as wide as the model are supported"
            w.refuse(f"{name}.heads_per_ngram", why)
        for key, given, need in (
            ("layer_multipliers", hp.ngram_multipliers, self.n),
            ("head_offsets", hp.ngram_offsets, heads),
            ("head_vocab_sizes", hp.ngram_sizes, heads),
        ):
            if len(given) < need:
                w.refuse(f"{name}.{key}", f"has {len(given)} entries, {need} are needed")
        if hp.ngram_end is None:
            w.refuse(f"{name}.eos_token_id", "required beside ple.layers")
        self.multipliers = np.array(hp.ngram_multipliers, np.uint64)
        sizes, offsets = (
            np.array(given[:heads], np.uint64).reshape(-1, per) for given in (hp.ngram_sizes, hp.ngram_offsets)
        )
        self.end, self.sizes, self.offsets = hp.ngram_end, sizes, offsets
        self.table = w.embedding("per_layer_token_embd", n=width)
        if not sizes.all() or int((sizes + offsets).max()) > len(self.table):
            w.refuse(f"{name}.head_vocab_sizes", f"name rows that are none of the table's {len(self.table)}")

    def __call__(self, ids: NDArray[np.int64], before: NDArray[np.int64]) -> Tensor:
        """Tokens [T] and those before each, [T, n - 1], the nearest first, -1 where there is none -> [T, D]."""
        hidden = np.logical_or.accumulate((before < 0) | (before == self.end), axis=1)
        seen = np.where(hidden, self.end, before).astype(np.uint64)
        mixed, rows = ids.astype(np.uint64) * self.multipliers[0], []
        for at, (size, offset) in enumerate(zip(self.sizes, self.offsets, strict=True)):
            mixed = mixed ^ (seen[:, at] * self.multipliers[at + 1])
            rows.append(mixed[:, None] % size + offset)
        return self.table(torch.from_numpy(np.concatenate(rows, 1).astype(np.int64).ravel())).view(len(ids), -1)


def tokens_before(batch: Batch, kept: NDArray[np.int32], n: int) -> NDArray[np.int64]:
    """The `n` tokens before each of a step's [T, n], the nearest first, -1 where there is none.

    `kept` has the last so many of sequences, by slot, the oldest first, each one more than its id, 0 where there is
    none; they are behind the step then.
    """
    assert batch.slots is not None
    ids, width = batch.numbers[0], kept.shape[1]
    before, lines = np.empty((len(ids), n), np.int64), []
    for (at, end), source in zip(pairwise(batch.begins), batch.slots[0], strict=True):
        past = kept[source].astype(np.int64) - 1 if source >= 0 else np.full(width, -1)
        lines.append(line := np.concatenate((past, ids[at:end])))
        for back in range(n):
            before[at:end, back] = line[width - 1 - back : len(line) - 1 - back]
    for line, (_, target, place, after) in zip(lines, batch.slots.T, strict=True):
        for slot, count in ((place, after), (target, len(line) - width)):
            if slot >= 0:
                kept[slot] = line[count : count + width] + 1
    return before
