"""Identity hyper-connections (Hunyuan 4): residual streams that parts read and write to, and that never mix."""

import torch
from torch import Tensor

from gmoe.kernels.ops import blended
from gmoe.layers.hyper_connections import streams
from gmoe.layers.low_rank_streams import sigmoid
from gmoe.layers.norm import RMSNorm
from gmoe.layers.weights import Weights

IDENTITY_KEYS = frozenset(f"hyper_connection.{key}" for key in ("count", "epsilon", "magnitude"))


class IdentityConnection:
    """Between the streams and one part of a block, `attn` or `ffn`.

    From all streams of a token a map makes the weights with which the part reads them and writes to them; meanwhile
    each stays as it is.
    """

    def __init__(self, w: Weights, part: str):
        self.n, self.eps = streams(w), w.hparams.hc_epsilon
        self.norm = RMSNorm(None, w.eps)
        self.map = w.linear(f"hc_{part}_fn", self.n * w.hparams.n_embd, 2 * self.n)
        self.scale = w.vector(f"hc_{part}_scale", 2).repeat_interleave(self.n)
        self.base = w.vector(f"hc_{part}_base", 2 * self.n)
        self.most = torch.tensor([1.0, w.hparams.hc_magnitude]).repeat_interleave(self.n)
        self.same = torch.eye(self.n)

    def read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Streams [T, n, D] -> what the part reads [T, D], and the weights [T, n, 1 + n] for `write`."""
        mixes = self.map(self.norm(x.flatten(1))) * self.scale + self.base
        reads, writes = (sigmoid(mixes) * self.most + self.eps).chunk(2, 1)
        behind = torch.cat((writes[:, :, None], self.same.expand(len(x), -1, -1)), 2)
        return blended(x, None, reads[:, None])[:, 0], behind

    def write(self, x: Tensor, y: Tensor, mixes: Tensor) -> Tensor:
        """Streams [T, n, D] and what the part gave for them [T, D] -> the streams behind it."""
        return blended(x, y, mixes)
