"""Sizes of recurrent layers with what tokens give them, and ways through their slots."""

from typing import Any, NamedTuple

import pytest
import torch
from gmoe.kernels import cpu_recurrent, reference_recurrent
from gmoe.kernels.recurrent import (
    ChannelRule,
    ChannelSpace,
    DeltaNet,
    DeltaRule,
    KimiDelta,
    KimiRule,
    Paths,
    SpaceRule,
    StateLayer,
    StateShape,
    StateSpace,
)
from torch import Tensor

from tests.test_step_cpu import random

ROUNDED = {"atol": 4e-6, "rtol": 4e-6}  # some roundings of float32, as of sums in another order
SLOTS = 10


class Net(NamedTuple):
    """Sizes of a gated delta net."""

    n_key: int
    heads: int
    dk: int
    dv: int
    neighbours: bool = False
    sigmoid: bool = False

    door, compiled, reference = DeltaNet, cpu_recurrent.DeltaNet, staticmethod(reference_recurrent.delta_rule)

    @property
    def channels(self) -> int:
        return 2 * self.n_key * self.dk + self.heads * self.dv

    @property
    def rule(self) -> DeltaRule:
        a, bias, norm = -random(self.heads, seed=1).abs() - 0.1, random(self.heads, seed=2), random(self.dv, seed=3)
        return DeltaRule(self.n_key, self.heads, a, bias, norm, 1e-6, self.neighbours, self.sigmoid)

    def rows(self, tokens: int) -> tuple[Tensor, ...]:
        """qkv, alpha, beta and z of so many tokens."""
        widths = self.channels, self.heads, self.heads, self.heads * self.dv
        return tuple(random(tokens, n, seed=seed) for seed, n in enumerate(widths))


class Kimi(NamedTuple):
    """Sizes of Kimi's delta attention."""

    heads: int
    dk: int
    dv: int
    floor: float = 0.0

    door, compiled, reference = KimiDelta, cpu_recurrent.KimiDelta, staticmethod(reference_recurrent.kimi_delta)

    @property
    def channels(self) -> int:
        return self.heads * self.dk

    @property
    def rule(self) -> KimiRule:
        a, bias, norm = -random(self.heads, seed=1).abs() - 0.1, random(self.channels, seed=2), random(self.dv, seed=3)
        return KimiRule(self.heads, a, bias, norm, 1e-6, 1e-5, self.floor)

    def rows(self, tokens: int) -> tuple[Tensor, ...]:
        """q, k, v, fade, beta and gate of so many tokens."""
        keys, values = self.channels, self.heads * self.dv
        widths = keys, keys, values, keys, self.heads, values
        return tuple(random(tokens, n, seed=seed) for seed, n in enumerate(widths))


class Space(NamedTuple):
    """Sizes of a selective state space."""

    n_group: int
    heads: int
    dk: int
    dv: int

    door, compiled = StateSpace, cpu_recurrent.StateSpace

    @staticmethod
    def reference(xbc: Tensor, dt: Tensor, z: Tensor, rule: SpaceRule, state: StateLayer, way: Paths) -> Tensor:
        """In float64: B and C have any length, so that a sum may be far smaller than its terms."""
        exact = rule._replace(**{name: getattr(rule, name).double() for name in ("a", "dt_bias", "d", "norm")})
        return reference_recurrent.state_space(xbc.double(), dt.double(), z.double(), exact, state, way).float()

    @property
    def channels(self) -> int:
        return self.heads * self.dv + 2 * self.n_group * self.dk

    @property
    def rule(self) -> SpaceRule:
        a, bias = -random(self.heads, seed=1).abs() - 0.1, random(self.heads, seed=2)
        d, norm = random(self.heads, seed=3), random(self.heads * self.dv, seed=4)
        return SpaceRule(self.n_group, self.heads, a, bias, d, norm, 1e-6)

    def rows(self, tokens: int) -> tuple[Tensor, ...]:
        """xbc, dt and z of so many tokens."""
        widths = self.channels, self.heads, self.heads * self.dv
        return tuple(random(tokens, n, seed=seed) for seed, n in enumerate(widths))


class Channels(NamedTuple):
    """Sizes of a state space by channel."""

    channels: int
    dk: int

    door, compiled = ChannelSpace, cpu_recurrent.ChannelSpace
    dv = 16

    @staticmethod
    def reference(*given: Any) -> Tensor:
        """In float64, as `Space`."""
        *rows, rule, state, way = given
        exact = ChannelRule(rule.a.double(), rule.d.double())
        return reference_recurrent.channel_space(*(part.double() for part in rows), exact, state, way).float()

    @property
    def heads(self) -> int:
        """Blocks of channels."""
        return -(-self.channels // 16)

    @property
    def rule(self) -> ChannelRule:
        return ChannelRule(-random(self.channels, self.dk, seed=1).abs() - 0.1, random(self.channels, seed=2))

    def rows(self, tokens: int) -> tuple[Tensor, ...]:
        """x, dt, b, c and z of so many tokens."""
        widths = self.channels, self.channels, self.dk, self.dk, self.channels
        return tuple(random(tokens, n, seed=seed) for seed, n in enumerate(widths))


NETS = [Net(2, 4, 32, 64), Net(2, 6, 20, 12, True), Net(1, 3, 16, 40, sigmoid=True), Net(3, 3, 7, 33, True)]
SPACES = [Space(1, 6, 32, 64), Space(3, 6, 20, 12), Space(2, 4, 16, 40), Space(1, 3, 7, 33)]
KIMIS = [Kimi(4, 32, 64), Kimi(3, 20, 12, -5.0), Kimi(1, 16, 40), Kimi(2, 7, 33, -0.5)]
CHANNELS = [Channels(64, 16), Channels(600, 9), Channels(7, 1)]
Sizes = Net | Kimi | Space | Channels
EVERY_RULE = pytest.mark.parametrize("net", [*NETS, *KIMIS, *SPACES, *CHANNELS], ids=str)


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def paths(*sequences: tuple[int, int, int, int, int]) -> Paths:
    """Of each sequence its rows, source, target, the slot that is kept and after how many rows."""
    rows, *slots = zip(*sequences, strict=True)
    return Paths(ints(0, *torch.tensor(rows).cumsum(0).tolist()), *(ints(*part) for part in slots))


def filled(net: Sizes, taps: int = 3) -> StateLayer:
    state = StateLayer(StateShape(taps, net.channels, net.heads, net.dk, net.dv), SLOTS)
    state.inputs.copy_(random(*state.inputs.shape, seed=4))
    state.matrices.copy_(random(*state.matrices.shape, seed=5, scale=0.3))
    return state


WAYS = {
    "prompts": paths((1, 0, 0, -1, 0), (6, -1, 1, 2, 4), (1, 3, 4, 5, 1), (0, 3, 6, -1, 0), (2, 7, 8, 7, 1)),
    "decoding": paths((1, 0, 0, -1, 0), (1, -1, 1, 2, 1), (1, 4, 5, 4, 1), (1, 6, 7, 7, 1)),
    "one row more": paths((2, 0, 0, -1, 0), (2, 3, 3, 5, 2), (1, -1, 9, -1, 0)),
}
EVERY_WAY = pytest.mark.parametrize("way", WAYS.values(), ids=list(WAYS))
