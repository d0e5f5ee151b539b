"""The sampler: one sequence's logits to its next token, through llama.cpp's chain in llama.cpp's order or another."""

from collections.abc import Callable, Container, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gmoe.engine import dry
from gmoe.engine.constraint import Constraint
from gmoe.engine.sampling import SamplingParams
from gmoe.kernels.cpu_step import argmax, largest

ZIPF = 100  # of the best tokens from which Mirostat reckons the others
SPARSE = 8  # a few tokens are looked at by themselves where they are fewer than all by so much
_TINY, _HUGE = 1e-300, 1e300  # float64 has room beyond them for a sum or a quotient


class NotNumbers(ValueError):
    """The model gave NaN: weights or arithmetic are broken."""


class Logprobs(NamedTuple):
    """Natural logarithms of the softmax over the raw logits."""

    chosen: float
    top: tuple[tuple[int, float], ...]  # the best ids, most probable first


class Sampler:
    """One sequence's chain and its own random numbers: batch mates never change what it draws.

    As in llama.cpp, a token that the grammar forbids is drawn again from those that it allows. At `breakers`, which are
    token ids, DRY's repetitions end.
    """

    def __init__(
        self,
        params: SamplingParams,
        default_seed: int | None = None,
        constraint: Constraint | None = None,
        breakers: Container[int] = (),
    ):
        self.params, self.constraint, self.breakers = params, constraint, breakers
        self.most_bits = 2.0 * params.mirostat_tau  # by which Mirostat lets a token surprise
        seed = params.seed if params.seed is not None else default_seed
        self.random = np.random.default_rng(None if seed is None else seed % 2**64)

    def sample(self, logits: np.ndarray, context: Sequence[int]) -> int:
        """logits [V] float32, the tokens so far (prompt included) -> a token id; NaN, infinite ones: `NotNumbers`."""
        logits = np.ascontiguousarray(logits, np.float32)
        greedy = argmax(logits)
        if greedy < 0 or logits[greedy] == np.inf:
            raise NotNumbers("the model gave logits that are not numbers")
        p = self.params
        if p.greedy and self.constraint is None and not p.logit_bias and self._neutral:
            return greedy
        if self.constraint is None and (few := _few(logits, p, context)) is not None:
            return self._draw(few, context)
        x = logits.astype(np.float64)
        for token, bias in p.logit_bias.items():
            if 0 <= token < len(x):
                x[token] += bias
        most_bits = self.most_bits
        token = self._draw(_Left(None, x if self.constraint is None else x.copy()), context)
        if self.constraint is not None:
            if not self.constraint.allows(token):
                self.most_bits = most_bits
                token = self._draw(_Left(None, np.where(self.constraint.mask(len(x)), x, -np.inf)), context)
            self.constraint.accept(token)
        return token

    def _draw(self, left: "_Left", context: Sequence[int]) -> int:
        """The chain over scores in float64, which it may change, then a draw among the tokens that it leaves."""
        p = self.params
        now = _Now(context, self.breakers, self.random)
        if p.mirostat and not p.greedy:
            return self._mirostat(_temperature(left, p, now))
        for name in () if p.mirostat else p.samplers:
            if not p.greedy or name in _COUNTS_WHEN_GREEDY:
                left = _CHAIN[name](left, p, now)
        if p.greedy:
            place = int(left.x.argmax())
            _require_any(left.x[place])
            return place
        ids, x = left.best_first()
        return int(ids[self._drawn(_softmax(x))])

    def _drawn(self, chances: np.ndarray) -> int:
        return min(int(np.searchsorted(np.cumsum(chances), self.random.random())), len(chances) - 1)

    def _mirostat(self, left: "_Left") -> int:
        """Mirostat (Basu et al., 2021): none that surprises by more bits than those drawn have left room for.

        The first version finds how many these are by Zipf's law, the second by their chances.
        """
        ids, x = left.best_first()
        if self.params.mirostat == 1:
            n = _by_zipf(x, self.most_bits)
        else:
            bits = -np.log2(np.maximum(_softmax(x), _TINY))
            n = max(1, int(np.searchsorted(bits, self.most_bits, side="right")))
        chances = _softmax(x[:n])
        place = self._drawn(chances)
        self.most_bits -= self.params.mirostat_eta * (-float(np.log2(chances[place])) - self.params.mirostat_tau)
        return int(ids[place])

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
        return p.mirostat > 0 or all(name not in p.samplers or off(p) for name, off in _COUNTS_WHEN_GREEDY.items())


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

    def where(self, tokens: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of ascending `tokens` with a value each, those that are left: their places and values."""
        if self.ids is None:
            return tokens, values
        at = np.flatnonzero(np.isin(self.ids, tokens))
        return at, values[np.searchsorted(tokens, self.ids[at])]

    def in_order(self) -> "_Left":
        """Best first again, equals by id, after scores were changed."""
        if self.ids is None:
            return self
        order = np.lexsort((self.ids, -self.x))
        return _Left(self.ids[order], self.x[order])


def _few(logits: np.ndarray, p: SamplingParams, context: Sequence[int]) -> _Left | None:
    """Where a top_k comes before what looks at all tokens: those among which its k are, so that nobody sorts the rest.

    They are the tokens whose scores may change before it and, of all, as many more than k. None: it does not pay.
    """
    if p.greedy or p.mirostat or p.logit_bias or not p.top_k or "top_k" not in p.samplers:
        return None
    changing = {"penalties": p.repeat_last_n, "dry": p.dry_penalty_last_n}
    before = [name for name in p.samplers[: p.samplers.index("top_k")] if name not in _OFF or not _OFF[name](p)]
    if not set(before) <= changing.keys():
        return None
    recent = [context if changing[name] < 0 else context[-changing[name] :] for name in before]
    changed = {token for tokens in recent for token in tokens}
    n = p.top_k + len(changed)
    if n * SPARSE > len(logits):
        return None
    ids = np.array(sorted(changed.union(largest(logits, n).tolist())))
    return _Left(ids, logits[ids].astype(np.float64)).in_order()


class _Now(NamedTuple):
    """What samplers may look at beside the scores."""

    context: Sequence[int]
    breakers: Container[int]
    random: np.random.Generator

    def recent(self, n: int) -> Sequence[int]:
        """The last n tokens; below 0: all."""
        return self.context if n < 0 else self.context[-n:]


def _unpenalized(p: SamplingParams) -> bool:
    off = p.repeat_penalty == 1 and not p.presence_penalty and not p.frequency_penalty
    return not p.repeat_last_n or off


def _penalties(left: _Left, p: SamplingParams, now: _Now) -> _Left:
    if _unpenalized(p):
        return left
    at, counts = left.where(*np.unique(np.array(now.recent(p.repeat_last_n), dtype=np.int64), return_counts=True))
    x = left.x
    x[at] = np.where(x[at] <= 0, x[at] * p.repeat_penalty, x[at] / p.repeat_penalty)
    x[at] -= counts * float(p.frequency_penalty) + float(p.presence_penalty)
    return left.in_order()


def _undry(p: SamplingParams) -> bool:
    return not p.dry_multiplier or not p.dry_penalty_last_n


def _dry(left: _Left, p: SamplingParams, now: _Now) -> _Left:
    if _undry(p):
        return left
    costly = sorted(dry.repeated(now.recent(p.dry_penalty_last_n), now.breakers, p.dry_allowed_length).items())
    if not costly:
        return left
    at, lengths = left.where(*np.array(costly, np.int64).T)
    with np.errstate(over="ignore"):
        price = p.dry_multiplier * np.power(float(p.dry_base), lengths - p.dry_allowed_length)
    left.x[at] -= np.minimum(price, _HUGE)
    return left.in_order()


def _no_sigma(p: SamplingParams) -> bool:
    return p.top_n_sigma <= 0


def _top_n_sigma(left: _Left, p: SamplingParams, now: _Now) -> _Left:
    """Those within n standard deviations of the best score (Tang et al., 2024)."""
    if _no_sigma(p):
        return left
    x = left.x[left.x > -np.inf]
    _require_any(left.x.max())
    with np.errstate(over="ignore", invalid="ignore"):  # where biases are beyond all bounds none is too far off
        far = x < x.max() - p.top_n_sigma * x.std()
    return _Left(*left.best_first(len(x) - int(far.sum())))


def _xtc(left: _Left, p: SamplingParams, now: _Now) -> _Left:
    """Exclude top choices (p-e-w, 2024): now and then all that are likely enough but the least likely of them."""
    if not p.xtc_probability or p.xtc_threshold > 0.5 or now.random.random() >= p.xtc_probability:
        return left
    ids, x = left.best_first()
    first = max(0, int((_softmax(x) >= max(p.xtc_threshold, _TINY)).sum()) - 1)
    first = first if len(x) - first >= p.min_keep else 0
    return _Left(ids[first:], x[first:])


def _by_zipf(x: np.ndarray, most_bits: float) -> int:
    """How many of the scores x [V], best first, Mirostat leaves: the chances of the best tell the law's exponent."""
    best = x[:ZIPF]
    steps = -np.diff(best[best > -np.inf])
    ranks = np.diff(np.log(np.arange(1, len(steps) + 2)))
    exponent = max(float((ranks * steps).sum() / max(float((ranks**2).sum()), _TINY)), _TINY)
    over = exponent - 1  # of the sum over all ranks, whose bits are `most_bits`
    all_ranks = np.log(len(x)) if over == 0 else -np.expm1(-over * np.log(len(x))) / over
    most = (most_bits * np.log(2) - np.log(max(float(all_ranks), _TINY))) / exponent
    return len(x) if most >= np.log(len(x)) else max(1, int(np.exp(most)))


def _top_k(left: _Left, p: SamplingParams, now: _Now) -> _Left:
    return _Left(*left.best_first(p.top_k)) if p.top_k else left


def _typical_p(left: _Left, p: SamplingParams, now: _Now) -> _Left:
    """Those whose surprise is nearest to the expected one, until they are more than the mass (Meister et al., 2022)."""
    if p.typical_p >= 1:
        return left
    ids, x = left.best_first()
    chances = _softmax(x)
    surprise = -np.log(np.maximum(chances, _TINY))
    order = np.argsort(np.abs(surprise - (chances * surprise).sum()), kind="stable")
    n = int(np.searchsorted(np.cumsum(chances[order]), p.typical_p, side="right")) + 1
    kept = np.sort(order[: max(n, p.min_keep)])
    return _Left(ids[kept], x[kept])


def _top_p(left: _Left, p: SamplingParams, now: _Now) -> _Left:
    if p.top_p >= 1:
        return left
    ids, x = left.best_first()
    n = max(p.min_keep, int(np.searchsorted(np.cumsum(_softmax(x)), p.top_p)) + 1)
    return _Left(ids[:n], x[:n])


def _min_p(left: _Left, p: SamplingParams, now: _Now) -> _Left:
    if p.min_p <= 0:
        return left
    ids, x = left.best_first()
    n = max(p.min_keep, int((x >= x[0] + np.log(p.min_p)).sum()))
    return _Left(ids[:n], x[:n])


def _temperature(left: _Left, p: SamplingParams, now: _Now) -> _Left:
    """Dynamic where there is a range: from its low end for one sure token to its high end for all alike (kalomaze)."""
    temperature = p.temperature
    if p.dynatemp_range and len(left.x) > 1:
        chances = _softmax(left.x)
        entropy = -(chances * np.log(np.maximum(chances, _TINY))).sum() / np.log(len(chances))
        low, high = max(0.0, temperature - p.dynatemp_range), min(temperature + p.dynatemp_range, _HUGE)
        temperature = low + (high - low) * min(max(0.0, float(entropy)), 1.0) ** p.dynatemp_exponent
    return _Left(left.ids, left.x / max(temperature, 1e-6))  # below, the quotient could overflow


_CHAIN: Mapping[str, Callable[[_Left, SamplingParams, _Now], _Left]] = {
    "penalties": _penalties,
    "dry": _dry,
    "top_n_sigma": _top_n_sigma,
    "top_k": _top_k,
    "typical_p": _typical_p,
    "top_p": _top_p,
    "min_p": _min_p,
    "xtc": _xtc,
    "temperature": _temperature,
}
_COUNTS_WHEN_GREEDY: Mapping[str, Callable[[SamplingParams], bool]] = {"penalties": _unpenalized, "dry": _undry}
_OFF = {**_COUNTS_WHEN_GREEDY, "top_n_sigma": _no_sigma}


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


def _require_any(best: float) -> None:
    if best == -np.inf:
        raise ValueError("no token is left that may come: each has a bias of minus infinity or is against the grammar")


def _softmax(x: np.ndarray) -> np.ndarray:
    top = x.max()
    _require_any(top)
    e = np.exp(x - top)
    shares: np.ndarray = e / e.sum()
    return shares
