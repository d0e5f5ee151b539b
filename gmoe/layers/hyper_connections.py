"""Manifold-constrained hyper-connections (DeepSeek-V4): residual streams, mixed by weights that each token makes."""

import torch
from torch import Tensor

from gmoe.kernels.ops import blended, gated, stream_weights
from gmoe.layers.norm import RMSNorm
from gmoe.layers.weights import Weights

HYPER_KEYS = frozenset(f"hyper_connection.{key}" for key in ("count", "sinkhorn_iterations", "epsilon"))


class HyperConnection:
    """Between the streams and one part of a block, `attn` or `ffn`.

    From all streams of a token a map makes the weights with which the part reads them and writes to them, and those
    with which they mix meanwhile: by Sinkhorn's way a matrix whose rows and columns each sum to 1.
    """

    def __init__(self, w: Weights, part: str):
        self.n, self.rounds, self.eps = streams(w), w.hparams.hc_sinkhorn, w.hparams.hc_epsilon
        outputs = (2 + self.n) * self.n
        self.norm = RMSNorm(None, w.eps)
        self.map = w.linear(f"hc_{part}_fn", self.n * w.hparams.n_embd, outputs)
        scale, each = w.vector(f"hc_{part}_scale", 3), torch.tensor([self.n, self.n, self.n * self.n])
        self.scale, self.base = scale.repeat_interleave(each), w.vector(f"hc_{part}_base", outputs)

    def read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Streams [T, n, D] -> what the part reads [T, D], and the weights [T, n, 1 + n] for `write`."""
        mixes = self.map(self.norm(x.flatten(1))) * self.scale + self.base
        weights, behind = stream_weights(mixes, self.n, self.rounds, self.eps)
        return blended(x, None, weights)[:, 0], behind

    def write(self, x: Tensor, y: Tensor, mixes: Tensor) -> Tensor:
        """Streams [T, n, D] and what the part gave for them [T, D] -> the streams behind it."""
        return blended(x, y, mixes)


class StreamSum:
    """What the last norm reads: the streams by weights that a map of them makes."""

    def __init__(self, w: Weights):
        n = streams(w)
        self.eps, self.norm = w.hparams.hc_epsilon, RMSNorm(None, w.eps)
        self.map = w.linear("output_hc_fn", n * w.hparams.n_embd, n)
        self.scale, self.base = w.vector("output_hc_scale", 1), w.vector("output_hc_base", n)

    def __call__(self, x: Tensor) -> Tensor:
        """Streams [T, n, D] -> [T, D]."""
        mixes = self.map(self.norm(x.flatten(1))) * self.scale + self.base
        weights = gated(mixes, torch.ones_like(mixes)) + self.eps  # by the kernel: torch rounds a row's end otherwise
        return blended(x, None, weights[:, None])[:, 0]


def mean(x: Tensor) -> Tensor:
    """What the last norm reads where no map makes weights: streams [T, n, D] -> [T, D]."""
    rows, n, _ = x.shape
    return blended(x, None, x.new_full((rows, 1, n), 1 / n))[:, 0]


def streams(w: Weights) -> int:
    """How many residual streams the file states."""
    n = w.hparams.n_streams
    if not 1 <= n <= 16:
        w.refuse(f"{w.hparams.architecture}.hyper_connection.count", f"{n} is outside 1 to 16")
    return n
