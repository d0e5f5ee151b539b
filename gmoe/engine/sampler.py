"""The sampler: one sequence's logits to its next token, through llama.cpp's chain in llama.cpp's order or another."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gmoe.engine.constraint import Constraint
from gmoe.engine.sampling import SamplingParams
from gmoe.kernels.cpu_step import argmax, largest


class NotNumbers(ValueError):
    """The model gave NaN: weights or arithmetic are broken."""


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
        """logits [V] float32, the tokens so far (prompt included) -> a token id; NaN logits are `NotNumbers`."""
        greedy = argmax(np.ascontiguousarray(logits, np.float32))
        if greedy < 0:
            raise NotNumbers("the model gave logits that are not numbers")
        p = self.params
        if p.greedy and self.constraint is None and not p.logit_bias and self._neutral:
            return greedy
        x = logits.astype(np.float64)
        for token, bias in p.logit_bias.items():
            if 0 <= token < len(x):
                x[token] += bias
        token = self._draw(x if self.constraint is None else x.copy(), context)
        if self.constraint is not None:
            if not self.constraint.allows(token):
                token = self._draw(np.where(self.constraint.mask(len(x)), x, -np.inf), context)
            self.constraint.accept(token)
        return token

    def _draw(self, x: np.ndarray, context: Sequence[int]) -> int:
        """The chain over the scores x [V] float64, which it may change, then a draw among the tokens that it leaves."""
        p, left = self.params, _Left(None, x)
        for name in p.samplers:
            if name == "penalties":
                left = left if self._neutral else _penalized(left, p, context)
            elif not p.greedy:
                left = _CHAIN[name](left, p)
        if p.greedy:
            return int(left.x.argmax())
        ids, x = left.best_first()
        chances = _softmax(x)
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
        off = not p.repeat_last_n or "penalties" not in p.samplers
        return off or (p.repeat_penalty == 1 and not p.presence_penalty and not p.frequency_penalty)


class _Best(NamedTuple):
    """Tokens and their scores, best first."""

    ids: np.ndarray
    x: np.ndarray


class _Left(NamedTuple):
    """The tokens that are left and their scores, best first; without `ids` they are all, each at its own place."""

    ids: np.ndarray | None
    x: np.ndarray

    def best_first(self, n: int | None = None) -> _Best:
        """The n best, or all that are left."""
        if self.ids is not None:
            return _Best(self.ids[:n], self.x[:n])
        ids = _best(self.x, len(self.x) if n is None else n)
        return _Best(ids, self.x[ids])


def _penalized(left: _Left, p: SamplingParams, context: Sequence[int]) -> _Left:
    recent = context if p.repeat_last_n < 0 else context[-p.repeat_last_n :]
    at, counts = np.unique(np.array(recent, dtype=np.int64), return_counts=True)
    if left.ids is not None:
        tokens, at = at, np.flatnonzero(np.isin(left.ids, at))
        counts = counts[np.searchsorted(tokens, left.ids[at])]
    x = left.x
    x[at] = np.where(x[at] <= 0, x[at] * p.repeat_penalty, x[at] / p.repeat_penalty)
    x[at] -= counts * float(p.frequency_penalty) + float(p.presence_penalty)
    if left.ids is None:
        return _Left(None, x)
    order = np.argsort(-x, kind="stable")
    return _Left(left.ids[order], x[order])


def _top_k(left: _Left, p: SamplingParams) -> _Left:
    return _Left(*left.best_first(p.top_k)) if p.top_k else left


def _typical_p(left: _Left, p: SamplingParams) -> _Left:
    """Those whose surprise is nearest to the expected one, until the mass is reached (Meister et al., 2022)."""
    if p.typical_p >= 1:
        return left
    ids, x = left.best_first()
    chances = _softmax(x)
    surprise = -np.log(np.maximum(chances, 1e-300))
    order = np.argsort(np.abs(surprise - (chances * surprise).sum()), kind="stable")
    kept = np.sort(order[: int(np.searchsorted(np.cumsum(chances[order]), p.typical_p)) + 1])
    return _Left(ids[kept], x[kept])


def _top_p(left: _Left, p: SamplingParams) -> _Left:
    if p.top_p >= 1:
        return left
    ids, x = left.best_first()
    n = int(np.searchsorted(np.cumsum(_softmax(x)), p.top_p)) + 1
    return _Left(ids[:n], x[:n])


def _min_p(left: _Left, p: SamplingParams) -> _Left:
    if p.min_p <= 0:
        return left
    ids, x = left.best_first()
    kept = x >= x[0] + np.log(p.min_p)
    return _Left(ids[kept], x[kept])


def _temperature(left: _Left, p: SamplingParams) -> _Left:
    return _Left(left.ids, left.x / max(p.temperature, 1e-6))  # below, the quotient could overflow


_CHAIN: Mapping[str, Callable[[_Left, SamplingParams], _Left]] = {
    "top_k": _top_k,
    "typical_p": _typical_p,
    "top_p": _top_p,
    "min_p": _min_p,
    "temperature": _temperature,
}


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
