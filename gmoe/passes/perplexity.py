"""Perplexity and divergence of a text as llama-perplexity measures them: the second half of each window is scored."""

import math
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Scorer = Callable[[Sequence[int]], NDArray[np.float32]]  # ids of a fresh sequence -> logits [n, n_vocab]

MAGIC = b"_logits_"
MOST_NATS = math.log(sys.float_info.max) / 3  # what is reckoned with a perplexity and its square are numbers as well
REACH = 16.0  # logits more than this below the best are stored as if they were not lower


class TextTooShort(ValueError):
    """There is not one window, or not two, in the text."""


def windows(ids: Sequence[int], context: int, bos: int | None, chunks: int = 0) -> list[list[int]]:
    """The text in windows of `context`, each begun anew with `bos` if the model wants one. Raises `TextTooShort`."""
    if context < 4:
        raise ValueError(f"a context of {context} tokens leaves nothing to score; it must be 4 at least")
    if chunks < 0:
        raise ValueError(f"{chunks} windows are none; it must be 0, for all of the text, or more")
    if len(ids) < 2 * context:
        raise TextTooShort(f"the text has {len(ids)} tokens; a context of {context} needs {2 * context} at least")
    count = len(ids) // context
    cut = [list(ids[n * context : (n + 1) * context]) for n in range(min(count, chunks or count))]
    for window in cut:
        if bos is not None:
            window[0] = bos
    return cut


def windows_of(tokenizer: Any, text: Path, context: int, chunks: int = 0) -> list[list[int]]:
    """A file's text in `windows`, with the tokenizer's own beginning if it has one."""
    ids = tokenizer.encode(text.read_text("utf-8", "replace"), add_special=True, parse_special=False)
    begins = tokenizer.encode("", add_special=True)[:1] == [tokenizer.bos_id]
    return windows(ids, context, tokenizer.bos_id if begins else None, chunks)


def scored(context: int) -> slice:
    """The positions of a window whose next token is scored."""
    return slice(context // 2, context - 1)


@dataclass
class Mean:
    """A mean that grows, and how sure it is."""

    values: list[Array] = field(default_factory=list)

    def add(self, values: Array) -> None:
        self.values.append(values)

    @property
    def all(self) -> Array:
        return np.concatenate(self.values)

    @property
    def mean(self) -> float:
        return float(self.all.mean())

    @property
    def error(self) -> float:
        """The standard error of the mean."""
        values = self.all
        return float(math.sqrt(max(0.0, values.var()) / (len(values) - 1))) if len(values) > 1 else 0.0


def log_probs(logits: NDArray[np.float32]) -> Array:
    """Log-softmax over the vocabulary in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    return np.asarray(wide - np.log(np.exp(wide).sum(-1, keepdims=True)))


def perplexities(cut: Sequence[Sequence[int]], score: Scorer) -> Iterator[tuple[Mean, NDArray[np.float32]]]:
    """After each window, the mean negative log-likelihood so far and the window's scored logits."""
    nll = Mean()
    for window in cut:
        where = scored(len(window))
        logits = score(window)[where]
        targets = np.asarray(window[where.start + 1 :])
        nll.add(-log_probs(logits)[np.arange(len(targets)), targets])
        yield nll, logits


def ppl(nll: float) -> float:
    """The perplexity of nats a token; infinite where there is no reckoning with it."""
    return math.exp(nll) if nll < MOST_NATS else math.inf


def mean_nll(cut: Sequence[Sequence[int]], score: Scorer) -> float:
    """The mean negative log-likelihood of all windows, nats a token."""
    return [nll for nll, _ in perplexities(cut, score)][-1].mean


class BaseWriter:
    """Writes llama-perplexity's file of a base model's logits, each row in 16 bits a token."""

    def __init__(self, file: BinaryIO, cut: Sequence[Sequence[int]], n_vocab: int):
        self.file = file
        file.write(MAGIC + struct.pack("<iii", len(cut[0]), n_vocab, len(cut)))
        file.write(np.asarray(cut, "<i4").tobytes())

    def add(self, logits: NDArray[np.float32]) -> None:
        """The scored rows of the next window."""
        top = logits.max(-1, keepdims=True)
        low = np.maximum(logits.min(-1, keepdims=True), top - REACH)
        sums = np.log(np.exp((logits - top).astype(np.float64)).sum(-1, keepdims=True))
        scale = ((top - low) / 65535).astype(np.float32)
        steps = np.rint((logits - low) / np.where(scale > 0, scale, 1)).clip(0, 65535) * (scale > 0)
        n_vocab = logits.shape[1]
        row = np.zeros((len(logits), 2 * ((n_vocab + 1) // 2) + 4), "<u2")
        row[:, :4] = np.concatenate((scale, low - top - sums), 1).astype("<f4").view("<u2")
        row[:, 4 : 4 + n_vocab] = steps
        self.file.write(row.tobytes())


class Base:
    """A file of a base model's logits. Raises ValueError where it is none, or is cut off."""

    def __init__(self, path: Path):
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(20)
            if len(head) < 20 or head[:8] != MAGIC:
                raise ValueError(f"{path} is not a file of --kl-divergence-base: it does not begin with {MAGIC!r}")
            self.context, self.n_vocab, count = struct.unpack("<iii", head[8:])
            self._row = 2 * ((self.n_vocab + 1) // 2) + 4
            if min(self.context - 3, self.n_vocab, count) < 1:
                told = f"{count} windows of {self.context} tokens, of {self.n_vocab} that there are"
                raise ValueError(f"{path} is no file of --kl-divergence-base: it has {told}")
            self._rows = self.context - 1 - self.context // 2
            self._begin = 20 + 4 * count * self.context
            want = self._begin + 2 * count * self._rows * self._row
            if size < want:
                raise ValueError(f"{path} is cut off: {count} windows of {self.context} tokens need {want} bytes")
            cut = np.frombuffer(file.read(4 * count * self.context), "<i4")
        self.path = path
        self.windows: list[list[int]] = cut.reshape(count, self.context).tolist()

    def log_probs(self, n: int) -> Array:
        """The scored rows of window n."""
        offset = self._begin + 2 * n * self._rows * self._row
        raw = np.fromfile(self.path, "<u2", self._rows * self._row, offset=offset).reshape(self._rows, self._row)
        scale, low = raw[:, :4].copy().view("<f4").astype(np.float64).T
        return np.asarray(low[:, None] + scale[:, None] * raw[:, 4 : 4 + self.n_vocab])


@dataclass
class Divergence:
    """How far a model is from its base on the same text; a value a scored token."""

    nll: Mean = field(default_factory=Mean)
    base_nll: Mean = field(default_factory=Mean)
    kld: Mean = field(default_factory=Mean)
    p_change: Mean = field(default_factory=Mean)  # of the text's own token
    same_top: Mean = field(default_factory=Mean)

    def add(self, ours: Array, base: Array, targets: NDArray[np.int64]) -> None:
        """Log-probabilities [n, n_vocab] of both, and the tokens [n] that came."""
        rows = np.arange(len(targets))
        self.nll.add(-ours[rows, targets])
        self.base_nll.add(-base[rows, targets])
        p = np.exp(base)
        self.kld.add((p * (base - ours)).sum(-1))
        self.p_change.add(np.exp(ours[rows, targets]) - p[rows, targets])
        self.same_top.add((ours.argmax(-1) == base.argmax(-1)).astype(np.float64))

    @property
    def rms_change(self) -> tuple[float, float]:
        """Root mean square of the change of probability, and its standard error."""
        squares = Mean([self.p_change.all**2])
        rms = math.sqrt(squares.mean)
        return rms, squares.error / (2 * rms) if rms > 0 else 0.0
