"""Manifold-constrained hyper-connections (DeepSeek-V4): residual streams, mixed by weights that each token makes."""

import torch
from torch import Tensor

from gmoe.kernels.ops import gated, rms_norm
from gmoe.layers.linear import QuantLinear
from gmoe.layers.weights import Weights

HYPER_KEYS = frozenset(f"hyper_connection.{key}" for key in ("count", "sinkhorn_iterations", "epsilon"))


class HyperConnection:
    """Between the streams and one part of a block, `attn` or `ffn`.

    From all streams of a token a map makes the weights with which the part reads them and writes to them, and those
    with which they mix meanwhile: by Sinkhorn's way a matrix whose rows and columns each sum to 1.
    """

    def __init__(self, w: Weights, part: str):
        n, hp = streams(w), w.hparams
        self.n, self.rounds, self.eps, self.norm_eps = n, hp.hc_sinkhorn, hp.hc_epsilon, w.eps
        self.map = w.linear(f"hc_{part}_fn", n * hp.n_embd, (2 + n) * n)
        scale, self.base = w.vector(f"hc_{part}_scale", 3), w.vector(f"hc_{part}_base", (2 + n) * n)
        self.scale = scale.repeat_interleave(torch.tensor([n, n, n * n], device=w.device))

    def read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Streams [T, n, D] -> what the part reads [T, D], and for `write` the weights [T, (2 + n) * n] as mapped."""
        mixes = _mapped(x, self.map, self.norm_eps) * self.scale + self.base
        return _summed(x, _sigmoid(mixes[:, : self.n]) + self.eps), mixes

    def write(self, x: Tensor, y: Tensor, mixes: Tensor) -> Tensor:
        """Streams [T, n, D] and what the part gave for them [T, D] -> the streams behind it."""
        n = self.n
        to = 2.0 * _sigmoid(mixes[:, n : 2 * n])  # [T, n]
        across = self._sinkhorn(mixes[:, 2 * n :].reshape(-1, n, n))  # [T, from, to]
        after = y[:, None] * to[:, :, None]
        for stream in range(n):
            after += x[:, stream, None] * across[:, stream, :, None]
        return after

    def _sinkhorn(self, x: Tensor) -> Tensor:
        x = torch.softmax(x, -1) + self.eps
        x = x / (_sum(x, 1) + self.eps)
        for _ in range(1, self.rounds):
            x = x / (_sum(x, 2) + self.eps)
            x = x / (_sum(x, 1) + self.eps)
        return x


class StreamSum:
    """What the last norm reads: the streams by weights that a map of them makes."""

    def __init__(self, w: Weights):
        n = streams(w)
        self.eps, self.norm_eps = w.hparams.hc_epsilon, w.eps
        self.map = w.linear("output_hc_fn", n * w.hparams.n_embd, n)
        self.scale, self.base = w.vector("output_hc_scale", 1), w.vector("output_hc_base", n)

    def __call__(self, x: Tensor) -> Tensor:
        """Streams [T, n, D] -> [T, D]."""
        mixes = _mapped(x, self.map, self.norm_eps) * self.scale + self.base
        return _summed(x, _sigmoid(mixes) + self.eps)


def streams(w: Weights) -> int:
    """How many residual streams the file states."""
    n = w.hparams.n_streams
    if not 1 <= n <= 64:
        w.refuse(f"{w.hparams.architecture}.hyper_connection.count", f"{n} is outside 1 to 64")
    return n


def _mapped(x: Tensor, map: QuantLinear, eps: float) -> Tensor:
    return map(rms_norm(x.flatten(1), None, None, eps))


def _summed(x: Tensor, weights: Tensor) -> Tensor:
    """Streams [T, n, D] by their weights [T, n] -> [T, D], in order."""
    y = x[:, 0] * weights[:, :1]
    for stream in range(1, x.shape[1]):
        y += x[:, stream] * weights[:, stream, None]
    return y


def _sum(x: Tensor, dim: int) -> Tensor:
    """Over one of the streams' dimensions [T, n, n], in order; torch's own depends on how many tokens there are."""
    total, *others = x.unbind(dim)
    for other in others:
        total = total + other
    return total.unsqueeze(dim)


def _sigmoid(x: Tensor) -> Tensor:
    """By the kernel: torch rounds the last few of a row otherwise than the others."""
    return gated(x.contiguous(), torch.ones_like(x))
