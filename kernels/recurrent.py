"""The door of the recurrent layers: short convolutions and gated delta rules, on whatever serves the device."""

from gmoe.kernels import reference_recurrent
from gmoe.kernels.device_kernels import DeviceKernels
from gmoe.kernels.reference_recurrent import DeltaRule
from gmoe.kernels.state import Paths, StateLayer, StateShape
from torch import Tensor

__all__ = ["DeltaRule", "Paths", "StateLayer", "StateShape", "delta_rule", "short_conv"]


def short_conv(
    x: Tensor,
    weight: Tensor,
    state: StateLayer,
    paths: Paths,
    *,
    silu: bool = False,
    before: Tensor | None = None,
    after: Tensor | None = None,
    on: DeviceKernels | None = None,
) -> Tensor:
    """A causal convolution by channel, y = after * f(conv(before * x)), f the SiLU or nothing.

    x, before and after [T, C] float32 may be parts of wider rows; weight [C, taps + 1], the oldest input first. The
    last inputs of each sequence are in the state as `paths` say.
    """
    return reference_recurrent.short_conv(x, weight, state, paths, silu, before, after)


def delta_rule(
    qkv: Tensor,
    alpha: Tensor,
    beta: Tensor,
    z: Tensor,
    rule: DeltaRule,
    state: StateLayer,
    paths: Paths,
    on: DeviceKernels | None = None,
) -> Tensor:
    """A gated delta net between its convolution and its output map: -> [T, n_value * dv], normed by head, gated by z.

    qkv [T, 2 * n_key * dk + n_value * dv], alpha and beta [T, n_value], z [T, n_value * dv], all float32; queries and
    keys have the length 1 by head then. A head's matrix S forgets by g = exp(a * softplus(alpha + dt_bias)), then
    learns what it did not know: S = g S, S += k (sigmoid(beta) (v - S'k))', y = S'q / sqrt(dk). A token's bits depend
    on no other sequence, and not on how many of its own were computed with it.
    """
    return reference_recurrent.delta_rule(qkv, alpha, beta, z, rule, state, paths)
