"""Kept sums: every few blocks the residual sum is kept and begins anew; parts read a mix of all (Kimi-K3)."""

from collections.abc import Callable

import torch
from torch import Tensor

from gmoe.kernels.ops import blended, gated
from gmoe.layers.norm import RMSNorm
from gmoe.layers.weights import Weights

KEPT_KEYS = frozenset({"attn_res.block_size"})


class SumMix:
    """One row of all sums, weighted by the softmax of what a map says to the norm of each."""

    def __init__(self, w: Weights, name: str):
        self.norm, self.score = RMSNorm(None, w.eps), w.linear(name, w.hparams.n_embd, 1)

    def __call__(self, x: Tensor) -> Tensor:
        """Sums [T, n, D], the one under way last -> [T, D]."""
        rows, n, _ = x.shape
        if n == 1:
            return x[:, 0]
        scores = self.score(self.norm(x.flatten(0, 1))).view(rows, n)
        return blended(x, None, softmax(scores)[:, None])[:, 0]


class KeptSums:
    """Between the sums and one part of a block, `attn` or `ffn`, which adds to the last of them, or begins the next."""

    def __init__(self, w: Weights, part: str):
        every = w.hparams.n_layer_kept
        self.begins = part == "attn" and every > 0 and w.layer % every == 0
        self.mix = mix(w, f"{part}_res_score")

    def read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Sums [T, n, D] -> what the part reads [T, D], and rows without a number for `write`."""
        return self.mix(x), x[:, 0, :0]

    def write(self, x: Tensor, y: Tensor, mixes: Tensor) -> Tensor:
        """Sums [T, n, D] and what the part gave for them [T, D] -> the sums behind it, perhaps in the memory of x."""
        if self.begins:
            return torch.cat((x, y[:, None]), 1)
        x[:, -1] += y
        return x


def mix(w: Weights, name: str) -> Callable[[Tensor], Tensor]:
    """What the file makes of sums [T, n, D] with the map `name`: where it keeps none, there is one."""
    return SumMix(w, name) if w.hparams.n_layer_kept else last


def last(x: Tensor) -> Tensor:
    """Sums [T, n, D] -> the one under way [T, D]."""
    return x[:, -1]


def softmax(scores: Tensor) -> Tensor:
    """Of [T, n]; e^x as sigmoid(x) / sigmoid(-x), by the kernel: torch rounds the last few of a row otherwise."""
    below = scores - scores.amax(-1, keepdim=True)
    powers = gated(below, torch.ones_like(below)) / gated(-below, torch.ones_like(below))
    total = powers[:, 0]
    for one in powers.unbind(1)[1:]:
        total = total + one
    return powers / total[:, None]
