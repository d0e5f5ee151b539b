"""Bits per byte of the test splits: of a model, of a 5-gram, of xz."""

import lzma
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from tools.demo.corpus import DOMAINS, END_OF_TEXT, WEIGHTS, documents, to_chatml
from tools.demo.model import Model
from tools.demo.ngram import NGram

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Measured:
    """What some text cost. Control tokens cost bits and hold no bytes."""

    nats: float = 0.0
    tokens: int = 0
    size: int = 0  # bytes

    def __add__(self, other: "Measured") -> "Measured":
        return Measured(self.nats + other.nats, self.tokens + other.tokens, self.size + other.size)

    @property
    def bits_per_byte(self) -> float:
        """Bits a byte."""
        return self.nats / np.log(2) / max(1, self.size)

    @property
    def perplexity(self) -> float:
        """By token."""
        return float(np.exp(self.nats / max(1, self.tokens)))


def encoded(encode: Encode, corpus: Path, domain: str, split: str, tokens: int | None) -> NDArray[np.int64]:
    """The first `tokens` tokens of a split, as in training: turns in ChatML, documents ended by <|endoftext|>.

    Train documents are shuffled, for a file has one source after another.
    """
    texts = list(documents(corpus, domain, split))
    if split == "train":
        np.random.default_rng(0).shuffle(texts)
    ids: list[int] = []
    for text in texts:
        ids += encode(to_chatml(text) + END_OF_TEXT)
        if tokens is not None and len(ids) >= tokens:
            break
    return np.array(ids[:tokens], np.int64)


def stretches(tokens: NDArray[np.int64], wanted: int | None, n: int = 16) -> list[NDArray[np.int64]]:
    """`wanted` tokens as n stretches, evenly spaced; all as one without `wanted` or where there are fewer."""
    if wanted is None or wanted >= len(tokens):
        return [tokens]
    each = wanted // n
    return [tokens[at : at + each] for at in np.linspace(0, len(tokens) - each, n).astype(int)]


@torch.no_grad()
def model_bits(model: Model, tokens: NDArray[np.int64], lengths: NDArray[np.int64]) -> Measured:
    """All tokens but the first, each with at least half a context before it where the text has it."""
    nats, n_ctx = 0.0, model.shape.n_ctx
    for start in range(0, max(1, len(tokens) - 1 - n_ctx // 2), n_ctx // 2):
        window = torch.from_numpy(tokens[start : start + n_ctx + 1])
        x, _ = model.hidden(window[None, :-1])
        seen = n_ctx // 2 if start else 0  # by the window before
        x, targets = x[0, seen:], window[1 + seen :]
        nats += F.cross_entropy(x @ model.token_embd.weight.T, targets, reduction="sum").item()
    return Measured(nats, len(tokens) - 1, int(lengths[tokens[1:]].sum()))


def ngram_bits(ngram: NGram, tokens: NDArray[np.int64], lengths: NDArray[np.int64]) -> Measured:
    """All tokens of the text but the first few."""
    chances = ngram.probabilities(tokens)
    return Measured(float(-np.log(chances).sum()), len(chances), int(lengths[tokens[ngram.n - 1 :]].sum()))


def train_ngram(encode: Encode, corpus: Path, tokens: int, n_vocab: int) -> NGram:
    """A 5-gram of `tokens` tokens of the train splits, in the mixture of the training."""
    shares = np.array(WEIGHTS) / sum(WEIGHTS) * tokens
    parts = [encoded(encode, corpus, domain, "train", int(n)) for domain, n in zip(DOMAINS, shares, strict=True)]
    return NGram(np.concatenate(parts), n_vocab)


def xz_bits(corpus: Path, domain: str) -> float:
    """Bits a byte that `xz -9e` takes for the whole test split."""
    with lzma.open(corpus / f"{domain}.test.txt.xz") as file:
        text = file.read()
    return 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / len(text)
