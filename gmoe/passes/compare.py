"""compare: what a choice of options costs and brings, measured token by token against exact runs of the same text."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gmoe.experts.calibration import shares
from gmoe.passes.perplexity import Array, Divergence, log_probs, ppl, scored


class Runner(Protocol):
    """A loaded model."""

    def logits(self, ids: Sequence[int], step: int = 0) -> NDArray[np.float32]: ...

    @property
    def stats(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Measured:
    """One set of options on a text."""

    tokens: int
    seconds: tuple[float, ...]  # of each window
    bytes_per_token: float  # read from the disk
    shares: Mapping[str, float]  # of the routed weight: by the CPU, at low precision, skipped, substituted, rerouted
    found: Divergence  # from the base

    @property
    def tokens_per_second(self) -> float:
        """Of all windows."""
        return self.tokens / sum(self.seconds)

    @property
    def ppl(self) -> float:
        """Perplexity of the text."""
        return ppl(self.found.nll.mean)

    @property
    def changed(self) -> float:
        """The share of the routed weight that was served otherwise than the router said, the CPU's not counted."""
        return sum(share for name, share in self.shares.items() if name != "cpu")


def base_of(llm: Runner, cut: Sequence[Sequence[int]]) -> list[Array]:
    """Log-probabilities of each window's scored positions, of a model that deviates from nothing."""
    return [log_probs(llm.logits(window)[scored(len(window))]).astype(np.float32) for window in cut]


def measure(llm: Runner, cut: Sequence[Sequence[int]], base: Sequence[Array], warm: Sequence[int]) -> Measured:
    """Run the windows as if they were generated, after the tokens `warm`, and compare with `base`."""
    llm.logits(warm, step=1)
    before, found, seconds = llm.stats, Divergence(), list[float]()
    for window, reference in zip(cut, base, strict=True):
        where = scored(len(window))
        began = time.perf_counter()
        logits = llm.logits(window, step=1)
        seconds.append(time.perf_counter() - began)
        found.add(log_probs(logits[where]), reference.astype(np.float64), np.asarray(window[where.start + 1 :]))
    after, tokens = llm.stats, sum(len(window) for window in cut)
    read = sum(after[tier]["bytes_loaded"] - before[tier]["bytes_loaded"] for tier in ("host", "twin") if tier in after)
    return Measured(tokens, tuple(seconds), read / tokens, shares(after, before), found)


def cost(got: Measured, exact: Sequence[Measured]) -> tuple[float, float]:
    """Seconds as a part of what exact took, and its standard error; of one window: infinite.

    Of each window the fastest of the `exact` runs counts: what else the machine does slows a run down, never up.
    """
    mine, theirs = np.asarray(got.seconds), np.min([run.seconds for run in exact], axis=0)
    part = float(mine.sum() / theirs.sum())
    if len(mine) < 2:
        return part, math.inf
    return part, float((mine - part * theirs).std(ddof=1) / math.sqrt(len(mine)) / theirs.mean())


def in_turn(
    llms: Mapping[str, Runner], cut: Sequence[Sequence[int]], base: Sequence[Array], warm: Sequence[int]
) -> dict[str, Measured]:
    """`measure` of several models, each window by all of them before the next: a busy machine meets all alike."""
    parts: dict[str, list[Measured]] = {name: [] for name in llms}
    for llm in llms.values():
        llm.logits(warm, step=1)
    for window, reference in zip(cut, base, strict=True):
        for name, llm in llms.items():
            parts[name].append(measure(llm, [window], [reference], window[:1]))
    return {name: _joined(some) for name, some in parts.items()}


def _joined(parts: Sequence[Measured]) -> Measured:
    """Windows of one length as one measurement."""
    found = Divergence()
    for name in vars(found):
        getattr(found, name).values.extend(values for part in parts for values in getattr(part.found, name).values)
    shares = {name: fmean(part.shares[name] for part in parts) for name in parts[0].shares}
    tokens, seconds = sum(part.tokens for part in parts), tuple(s for part in parts for s in part.seconds)
    return Measured(tokens, seconds, fmean(part.bytes_per_token for part in parts), shares, found)


def speedups(got: Measured, exact: Measured) -> list[float]:
    """How many times as fast each window was; of runs that were made in turn."""
    return [theirs / mine for mine, theirs in zip(got.seconds, exact.seconds, strict=True)]
