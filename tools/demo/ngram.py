"""A baseline that knows no more than five tokens: interpolated Kneser-Ney (Chen, Goodman 1998)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FACTOR = 0x9E3779B97F4A7C15  # of the polynomial hash that stands for a run of tokens
DISCOUNT = 0.75


def hashes(tokens: NDArray[np.integer], n: int, skip: int) -> NDArray[np.uint64]:
    """For each position the hash of the n tokens that end there, less its last `skip`; the first are short."""
    values = tokens.astype(np.uint64) + np.uint64(1)
    total = np.zeros(len(tokens), np.uint64)
    for back in range(skip, n):
        total[back:] += values[: len(values) - back] * np.uint64(pow(FACTOR, back, 1 << 64))
    return total


@dataclass(frozen=True)
class Order:
    """What was counted of runs of n tokens."""

    grams: NDArray[np.uint64]  # [unique] sorted hashes
    counts: NDArray[np.int64]  # [unique]
    contexts: NDArray[np.uint64]  # [contexts] sorted hashes of all but the last token
    totals: NDArray[np.int64]  # [contexts] how often each was seen
    kinds: NDArray[np.int64]  # [contexts] how many tokens followed it


class NGram:
    """P(token | the n - 1 before it), from counts over training tokens."""

    def __init__(self, tokens: NDArray[np.integer], n_vocab: int, n: int = 5) -> None:
        self.n, self.n_vocab = n, n_vocab
        self.orders: list[Order] = []  # of n, n - 1, ..., 1 tokens
        where, seen = np.arange(n - 1, len(tokens)), np.ones(len(tokens) - n + 1, np.int64)
        for order in range(n, 0, -1):
            grams, first, inverse = np.unique(hashes(tokens, order, 0)[where], return_index=True, return_inverse=True)
            counts = np.bincount(inverse, seen).astype(np.int64)
            where = where[first]  # a shorter run counts by how many longer ones end in it
            contexts, inverse = np.unique(hashes(tokens, order, 1)[where], return_inverse=True)
            totals = np.bincount(inverse, counts).astype(np.int64)
            self.orders.append(Order(grams, counts, contexts, totals, np.bincount(inverse)))
            seen = np.ones(len(where), np.int64)

    def probabilities(self, tokens: NDArray[np.integer]) -> NDArray[np.float64]:
        """Of each token after the first n - 1, given those before it: [len(tokens) - n + 1]."""
        result = np.full(len(tokens) - self.n + 1, 1 / self.n_vocab)
        for length, order in enumerate(reversed(self.orders), 1):
            count = _look_up(order.grams, order.counts, hashes(tokens, length, 0)[self.n - 1 :])
            context = hashes(tokens, length, 1)[self.n - 1 :]
            total = _look_up(order.contexts, order.totals, context)
            kinds = _look_up(order.contexts, order.kinds, context)
            known = np.maximum(total, 1)
            better = (np.maximum(count - DISCOUNT, 0) + DISCOUNT * kinds * result) / known
            result = np.where(total > 0, better, result)
        return result


def _look_up(keys: NDArray[np.uint64], values: NDArray[np.int64], wanted: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The value of each wanted key, 0 where there is none."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)
