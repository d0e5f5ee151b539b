"""The sampler: one sequence's logits to its next token, through llama.cpp's chain in llama.cpp's order."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gmoe.engine.constraint import Constraint
from gmoe.engine.sampling import SamplingParams
from gmoe.kernels.cpu_step import argmax, largest


class Logprobs(NamedTuple):
    """Natural logarithms of the softmax over the raw logits."""

    chosen: float
    top: tuple[tuple[int, float], ...]  # the best ids, most probable first


class Sampler:
    """One sequence's chain and its own random numbers: batch mates never change what it draws.

    As in llama.cpp, a token that the grammar forbids is drawn again from those that it allows.
    """

    def __init__(self, params: SamplingParams, default_seed: int | None = None, constraint: Constraint | None = None):
        self.params, self.constraint = params, constraint
        seed = params.seed if params.seed is not None else default_seed
        self.random = np.random.default_rng(None if seed is None else seed % 2**64)

    def sample(self, logits: np.ndarray, context: Sequence[int]) -> int:
        """logits [V] float32, the tokens so far (prompt included) -> a token id; NaN logits are a `ValueError`."""
        greedy = argmax(np.ascontiguousarray(logits, np.float32))
        if greedy < 0:
            raise ValueError("the model gave logits that are not numbers")
        p = self.params
        if p.temperature <= 0 and self.constraint is None and not p.logit_bias and self._neutral:
            return greedy
        x = logits.astype(np.float64)
        for token, bias in p.logit_bias.items():
            if 0 <= token < len(x):
                x[token] += bias
        self._penalize(x, context)
        token = self._draw(x)
        if self.constraint is not None:
            if not self.constraint.allows(token):
                token = self._draw(np.where(self.constraint.mask(len(x)), x, -np.inf))
            self.constraint.accept(token)
        return token

    def _draw(self, x: np.ndarray) -> int:
        p = self.params
        if p.temperature <= 0:
            return int(x.argmax())
        ids = _best(x, p.top_k or len(x))
        if p.typical_p < 1:
            ids = _typical(ids, x, p.typical_p)
        if p.top_p < 1:
            ids = ids[: int(np.searchsorted(np.cumsum(_softmax(x[ids])), p.top_p)) + 1]
        if p.min_p > 0:
            ids = ids[x[ids] >= x[ids[0]] + np.log(p.min_p)]
        chances = _softmax(x[ids] / max(p.temperature, 1e-6))  # below, the quotient could overflow
        return int(ids[min(int(np.searchsorted(np.cumsum(chances), self.random.random())), len(ids) - 1)])

    def logprobs(self, logits: np.ndarray, token: int) -> Logprobs | None:
        """What is reported of the choice, where the request asks for it."""
        if self.params.logprobs is None:
            return None
        x = logits.astype(np.float64)
        x = x - x.max() - np.log(np.exp(x - x.max()).sum())
        best = _best(x, self.params.logprobs)
        return Logprobs(float(x[token]), tuple((int(i), float(x[i])) for i in best))

    @property
    def _neutral(self) -> bool:
        p = self.params
        return not p.repeat_last_n or (p.repeat_penalty == 1 and not p.presence_penalty and not p.frequency_penalty)

    def _penalize(self, x: np.ndarray, context: Sequence[int]) -> None:
        p = self.params
        if self._neutral:
            return
        recent = context if p.repeat_last_n < 0 else context[-p.repeat_last_n :]
        ids, counts = np.unique(np.array(recent, dtype=np.int64), return_counts=True)
        x[ids] = np.where(x[ids] <= 0, x[ids] * p.repeat_penalty, x[ids] / p.repeat_penalty)
        x[ids] -= counts * p.frequency_penalty + p.presence_penalty


def _best(x: np.ndarray, n: int) -> np.ndarray:
    """The ids of the n largest, largest first, equals by id; sorts only what it keeps."""
    if n == 0:
        return np.zeros(0, dtype=np.int64)
    if n >= len(x):
        return np.argsort(-x, kind="stable")
    with np.errstate(over="ignore"):
        rough = x.astype(np.float32)  # rounding keeps the order, but for ties
    ids = np.flatnonzero(rough >= rough[largest(rough, n)[-1]])
    best: np.ndarray = ids[np.argsort(-x[ids], kind="stable")][:n]
    return best


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    shares: np.ndarray = e / e.sum()
    return shares


def _typical(ids: np.ndarray, x: np.ndarray, mass: float) -> np.ndarray:
    """Those whose surprise is nearest to the expected one, until `mass` is reached (Meister et al., 2022)."""
    chances = _softmax(x[ids])
    surprise = -np.log(np.maximum(chances, 1e-300))
    order = np.argsort(np.abs(surprise - (chances * surprise).sum()), kind="stable")
    kept = order[: int(np.searchsorted(np.cumsum(chances[order]), mass)) + 1]
    return ids[np.sort(kept)]
