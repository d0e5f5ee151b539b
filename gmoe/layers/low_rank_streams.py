"""Hyper-connections of low rank: what of each stream a part reads, an MLP of all of them says (Qwen3.8-Flash-Next)."""

import math

import torch
from torch import Tensor

from gmoe.kernels.ops import dequantize, gated, rms_norm
from gmoe.layers.hyper_connections import streams
from gmoe.layers.weights import Weights

LOW_RANK_KEYS = frozenset({"hyper_connection.count", "hyper_connection.low_rank"})


class StreamNorm:
    """A norm of each stream, with a weight of its own."""

    def __init__(self, w: Weights, name: str):
        self.shape, self.eps = (streams(w), w.hparams.n_embd), w.eps
        apart = w.quant(name).shape == self.shape  # or they lie side by side
        weight = w.quant(name, shape=self.shape if apart else (math.prod(self.shape),))
        self.weight = dequantize(weight).view(self.shape)

    def __call__(self, x: Tensor) -> Tensor:
        """Streams [T, n, D] or [T, n * D] -> [T, n, D]."""
        x = x.reshape(-1, self.shape[1])
        return rms_norm(x, None, None, self.eps).view(-1, *self.shape).mul_(self.weight)


class StreamMix:
    """One row of all streams: the mean of what gates, from element to element, let through of their norms."""

    def __init__(self, w: Weights, name: str):
        hp, self.n = w.hparams, streams(w)
        if self.n < 2 or not hp.hc_low_rank:
            w.refuse(f"{hp.architecture}.hyper_connection.count", f"{self.n}; at least 2, with low_rank, is supported")
        wide, low = self.n * hp.n_embd, hp.hc_low_rank
        self.norm = StreamNorm(w, f"{name}_norm")
        self.down, self.up = w.linear(f"{name}_down", wide, low), w.linear(f"{name}_up", low, wide)

    def __call__(self, x: Tensor) -> Tensor:
        """Streams [T, n, D] -> [T, D]."""
        return self.of(self.norm(x))

    def of(self, normed: Tensor) -> Tensor:
        """The same of their norms, which stay as they are."""
        low = self.down(normed.flatten(1)).div_(self.n)
        gates = self.up(gated(low, low.clone(), curve="sigmoid"))
        let = gated(gates, normed.flatten(1).clone()).view(normed.shape)
        y = let[:, 0]
        for stream in range(1, self.n):
            y = y + let[:, stream]
        return y / self.n


class LowRankConnection:
    """Between the streams and one part of a block, `attn` or `ffn`, which adds to each as much as a map says."""

    def __init__(self, w: Weights, part: str):
        self.mix = StreamMix(w, f"hc_{part}")
        self.inject = w.linear(f"hc_{part}_inject", self.mix.n * w.hparams.n_embd, self.mix.n)

    def read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Streams [T, n, D] -> what the part reads [T, D], and for `write` how much each stream is given [T, n]."""
        normed = self.mix.norm(x)
        much = sigmoid(self.inject(normed.flatten(1)).div_(self.mix.n)).mul_(2.0)
        return self.mix.of(normed), much

    def write(self, x: Tensor, y: Tensor, mixes: Tensor) -> Tensor:
        """Streams [T, n, D] and what the part gave for them [T, D] -> the streams behind it."""
        return x + y[:, None] * mixes[:, :, None]


def sigmoid(x: Tensor) -> Tensor:
    """Of [T, n], by the kernel: torch rounds the last few of a row otherwise than the others."""
    return gated(x, torch.ones_like(x))
