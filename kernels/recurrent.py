"""The door of the recurrent layers: convolutions, delta rules and state spaces, on whatever serves the device."""

import torch
from gmoe.kernels import cpu_recurrent
from gmoe.kernels.device_kernels import DeviceKernels
from gmoe.kernels.reference_recurrent import ChannelRule, DeltaRule, KimiRule, SpaceRule
from gmoe.kernels.state import Paths, StateLayer, StateShape
from torch import Tensor

__all__ = [
    "ChannelRule", "ChannelSpace", "DeltaNet", "DeltaRule", "KimiDelta", "KimiRule", "Paths", "ShortConv", "SpaceRule",
    "StateLayer", "StateShape", "StateSpace",
]  # fmt: skip


class ShortConv:
    """A causal convolution by channel, weight [C, taps + 1] float32, the oldest input first; bias [C] or None."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, on: DeviceKernels | None = None):
        self.weight, self.bias, self.on = weight, bias, on
        self._compiled = cpu_recurrent.ShortConv(weight, bias) if on is None else None

    def __call__(
        self,
        x: Tensor,
        state: StateLayer,
        paths: Paths,
        *,
        silu: bool = False,
        before: Tensor | None = None,
        after: Tensor | None = None,
    ) -> Tensor:
        """y = after * f(conv(before * x) + bias), f the SiLU or nothing: -> [T, C].

        x, before and after [T, C] float32 may be parts of wider rows. The last inputs of each sequence, before * x,
        are in the state as `paths` say.
        """
        if self._compiled is not None:
            return self._compiled(x, state, paths, silu, before, after, torch.get_num_threads())
        assert self.on is not None
        return self.on.short_conv(x, self.weight, self.bias, state, paths, silu, before, after)


class DeltaNet:
    """A gated delta net between its convolution and its output map."""

    def __init__(self, rule: DeltaRule, on: DeviceKernels | None = None):
        self.rule, self.on = rule, on
        self._compiled = cpu_recurrent.DeltaNet(rule) if on is None else None

    def __call__(self, qkv: Tensor, alpha: Tensor, beta: Tensor, z: Tensor, state: StateLayer, paths: Paths) -> Tensor:
        """-> [T, n_value * dv], normed by head, gated by the SiLU of z or, as the rule says, its sigmoid.

        qkv [T, 2 * n_key * dk + n_value * dv], alpha and beta [T, n_value], z [T, n_value * dv], all float32, may be
        parts of wider rows; queries and keys have the length 1 by head then. A head's matrix S forgets by
        g = exp(a * softplus(alpha + dt_bias)), then learns what it did not know: S = g S,
        S += k (sigmoid(beta) (v - S'k))', y = S'q / sqrt(dk). A token's bits depend on no other sequence, and not on
        how many of its own were computed with it.
        """
        if self._compiled is not None:
            return self._compiled(qkv, alpha, beta, z, state, paths, torch.get_num_threads())
        assert self.on is not None
        return self.on.delta_rule(qkv, alpha, beta, z, self.rule, state, paths)


class KimiDelta:
    """Kimi's delta attention between its convolutions and its output map."""

    def __init__(self, rule: KimiRule, on: DeviceKernels | None = None):
        self.rule, self.on = rule, on
        self._compiled = cpu_recurrent.KimiDelta(rule) if on is None else None

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        fade: Tensor,
        beta: Tensor,
        gate: Tensor,
        state: StateLayer,
        paths: Paths,
    ) -> Tensor:
        """-> [T, n_head * dv], normed by head, gated.

        q, k and fade [T, n_head * dk], v and gate [T, n_head * dv], beta [T, n_head], all float32, may be parts of
        wider rows; queries and keys have the length 1 by head then. As `DeltaNet`, but each row of a head's matrix has
        a part g of its own that is left of it: with g = exp(a * softplus(fade + dt_bias)), or, where the rule has a
        floor, exp(floor * sigmoid(-a * (fade + dt_bias))), S = diag(g) S,
        S += k (sigmoid(beta) (v - S'k))', y = S'q / sqrt(dk); then norm(y) * sigmoid(gate). A token's bits depend on no
        other sequence, and not on how many of its own were computed with it.
        """
        if self._compiled is not None:
            return self._compiled(q, k, v, fade, beta, gate, state, paths, torch.get_num_threads())
        assert self.on is not None
        return self.on.kimi_delta(q, k, v, fade, beta, gate, self.rule, state, paths)


class StateSpace:
    """A selective state space (Mamba-2) between its convolution and its output map."""

    def __init__(self, rule: SpaceRule, on: DeviceKernels | None = None):
        self.rule, self.on = rule, on
        self._compiled = cpu_recurrent.StateSpace(rule) if on is None else None

    def __call__(self, xbc: Tensor, dt: Tensor, z: Tensor, state: StateLayer, paths: Paths) -> Tensor:
        """-> [T, n_head * dv], gated by z and normed by group.

        xbc [T, n_head * dv + 2 * n_group * dk], dt [T, n_head], z [T, n_head * dv], all float32, may be parts of
        wider rows. With step = softplus(dt + dt_bias) a head's matrix becomes S = exp(step * a) S + B (step * x)', and
        y = S'C + d x; then norm(silu(z) y). A token's bits depend on no other sequence, and not on how many of its own
        were computed with it.
        """
        if self._compiled is not None:
            return self._compiled(xbc, dt, z, state, paths, torch.get_num_threads())
        assert self.on is not None
        return self.on.state_space(xbc, dt, z, self.rule, state, paths)


class ChannelSpace:
    """A selective state space by channel (Mamba-1) between its maps, on the CPU alone."""

    def __init__(self, rule: ChannelRule):
        self._compiled = cpu_recurrent.ChannelSpace(rule)

    def __call__(
        self, x: Tensor, dt: Tensor, b: Tensor, c: Tensor, z: Tensor, state: StateLayer, paths: Paths
    ) -> Tensor:
        """-> [T, C], gated by z.

        x, dt and z [T, C], b and c [T, dk], all float32, may be parts of wider rows. With step = softplus(dt) a channel
        has S = exp(step * a) S + b step x, and y = c'S + d x; then silu(z) y. Slots [ceil(C / 16), dk, 16] have S by
        block of sixteen channels. A token's bits depend on no other sequence, and not on how many of its own were
        computed with it.
        """
        return self._compiled(x, dt, b, c, z, state, paths, torch.get_num_threads())
