"""The recurrent layers in plain torch: the truth that kernels are held to."""

from typing import NamedTuple

import torch
from gmoe.kernels.state import Paths, StateLayer
from torch import Tensor
from torch.nn.functional import pad


class DeltaRule(NamedTuple):
    """What a gated delta net knows of a layer beside its inputs.

    Heads of values use the keys of head h % n_key, or, `neighbours`, of h // (n_value / n_key).
    """

    n_key: int
    n_value: int
    a: Tensor  # [n_value], how fast a head forgets, below 0
    dt_bias: Tensor  # [n_value]
    norm: Tensor  # [dv], weight of the norm of what a head gives
    eps: float
    neighbours: bool
    sigmoid: bool = False  # the gate is the sigmoid of z, not its SiLU


class KimiRule(NamedTuple):
    """What Kimi's delta attention knows of a layer beside its inputs; each head has a query and a key of its own."""

    n_head: int
    a: Tensor  # [n_head], how fast a head forgets, below 0
    dt_bias: Tensor  # [n_head * dk]
    norm: Tensor  # [dv], weight of the norm of what a head gives
    eps: float
    key_eps: float  # of the lengths of queries and keys
    floor: float = 0.0  # where it is below 0, a token leaves more than exp(floor) of a row


class SpaceRule(NamedTuple):
    """What a selective state space (Mamba-2) knows of a layer; heads h share the group h // (n_head / n_group)."""

    n_group: int
    n_head: int
    a: Tensor  # [n_head], how fast a head forgets, below 0
    dt_bias: Tensor  # [n_head]
    d: Tensor  # [n_head], how much of its input a head adds
    norm: Tensor  # [n_head * dv], weight of the norms over a group's heads
    eps: float


class ChannelRule(NamedTuple):
    """What a state space by channel (Mamba-1) knows of a layer."""

    a: Tensor  # [C, dk], how fast each number of a channel's state is forgotten, below 0
    d: Tensor  # [C], how much of its input a channel adds


def short_conv(
    x: Tensor,
    weight: Tensor,
    state: StateLayer,
    paths: Paths,
    silu: bool,
    before: Tensor | None = None,
    after: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """y[t] = after[t] * f(sum_j weight[:, j] * u[t - taps + j] + bias), u = before * x, f the SiLU or nothing."""
    u = x if before is None else x * before
    y, taps = torch.empty_like(u), state.shape.taps
    for begin, end, source, target, kept, kept_after in _each(paths):
        past = u.new_zeros(taps, u.shape[1]) if source < 0 else state.inputs[source]
        line = torch.cat([past, u[begin:end]])
        y[begin:end] = torch.stack([line[j : j + end - begin] * weight[:, j] for j in range(taps + 1)]).sum(0)
        if kept >= 0:
            state.inputs[kept] = line[kept_after : kept_after + taps]
        state.inputs[target] = line[end - begin :]
    y = y if bias is None else y + bias
    y = torch.nn.functional.silu(y) if silu else y
    return y if after is None else y * after


def delta_rule(
    qkv: Tensor, alpha: Tensor, beta: Tensor, z: Tensor, rule: DeltaRule, state: StateLayer, paths: Paths
) -> Tensor:
    """S = g * S; S += k (beta * (v - S'k))'; y = norm(S'q) * silu(z), or sigmoid(z), by head, token after token."""
    shape = state.shape
    heads, widths = (rule.n_key, rule.n_key, rule.n_value), (shape.dk, shape.dk, shape.dv)
    parts = qkv.split([n * d for n, d in zip(heads, widths, strict=True)], 1)
    q, k, v = (part.unflatten(1, (-1, d)) for part, d in zip(parts, widths, strict=True))
    head = torch.arange(rule.n_value, device=qkv.device)
    head = head // (rule.n_value // rule.n_key) if rule.neighbours else head % rule.n_key
    q, k = (x * torch.rsqrt((x * x).sum(-1, keepdim=True) + rule.eps) for x in (q, k))
    q, k = (q * shape.dk**-0.5)[:, head], k[:, head]  # [T, H, dk]
    g = torch.exp(torch.nn.functional.softplus(alpha + rule.dt_bias) * rule.a)
    beta = torch.sigmoid(beta)
    y = torch.empty_like(v)
    for begin, end, source, target, kept, kept_after in _each(paths):
        s = torch.zeros_like(state.matrices[0]) if source < 0 else state.matrices[source].clone()  # [H, dk, dv]
        for t in range(begin, end):
            s *= g[t, :, None, None]
            change = beta[t, :, None] * (v[t] - (s * k[t, :, :, None]).sum(1))
            s += k[t, :, :, None] * change[:, None]
            y[t] = (s * q[t, :, :, None]).sum(1)
            if kept >= 0 and t - begin + 1 == kept_after:
                state.matrices[kept] = s
        state.matrices[target] = s
    y = y * torch.rsqrt((y * y).mean(-1, keepdim=True) + rule.eps) * rule.norm
    return (y.flatten(1) * (torch.sigmoid(z) if rule.sigmoid else torch.nn.functional.silu(z))).contiguous()


def kimi_delta(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    fade: Tensor,
    beta: Tensor,
    gate: Tensor,
    rule: KimiRule,
    state: StateLayer,
    paths: Paths,
) -> Tensor:
    """S = diag(g) S; S += k (beta * (v - S'k))'; y = norm(S'q) * sigmoid(gate), by head, token after token."""
    shape, heads = state.shape, rule.n_head
    q, k, v, fade = (x.unflatten(1, (heads, -1)) for x in (q, k, v, fade + rule.dt_bias))  # [T, H, dk], v [T, H, dv]
    q, k = (x * torch.rsqrt((x * x).sum(-1, keepdim=True) + rule.key_eps) for x in (q, k))
    q, a = q * shape.dk**-0.5, rule.a[:, None]
    g = torch.exp(rule.floor * torch.sigmoid(-a * fade) if rule.floor else a * torch.nn.functional.softplus(fade))
    beta = torch.sigmoid(beta)
    y = torch.empty_like(v)
    for begin, end, source, target, kept, kept_after in _each(paths):
        s = torch.zeros_like(state.matrices[0]) if source < 0 else state.matrices[source].clone()  # [H, dk, dv]
        for t in range(begin, end):
            s *= g[t, :, :, None]
            change = beta[t, :, None] * (v[t] - (s * k[t, :, :, None]).sum(1))
            s += k[t, :, :, None] * change[:, None]
            y[t] = (s * q[t, :, :, None]).sum(1)
            if kept >= 0 and t - begin + 1 == kept_after:
                state.matrices[kept] = s
        state.matrices[target] = s
    y = y * torch.rsqrt((y * y).mean(-1, keepdim=True) + rule.eps) * rule.norm
    return (y.flatten(1) * torch.sigmoid(gate)).contiguous()


def state_space(xbc: Tensor, dt: Tensor, z: Tensor, rule: SpaceRule, state: StateLayer, paths: Paths) -> Tensor:
    """S = g * S + B (dt * x)'; y = S'C + d * x, by head; then norm(silu(z) * y), by group."""
    shape, groups = state.shape, rule.n_head // rule.n_group
    wide, narrow = rule.n_head * shape.dv, rule.n_group * shape.dk
    parts = xbc.split([wide, narrow, narrow], 1)
    x, b, c = (part.unflatten(1, (-1, d)) for part, d in zip(parts, (shape.dv, shape.dk, shape.dk), strict=True))
    b, c = b.repeat_interleave(groups, 1), c.repeat_interleave(groups, 1)  # [T, H, dk]
    dt = torch.nn.functional.softplus(dt + rule.dt_bias)
    g, y = torch.exp(dt * rule.a), torch.empty_like(x)
    for begin, end, source, target, kept, kept_after in _each(paths):
        s = torch.zeros_like(state.matrices[0]) if source < 0 else state.matrices[source].clone()  # [H, dk, dv]
        for t in range(begin, end):
            s = g[t, :, None, None] * s + b[t, :, :, None] * (dt[t, :, None] * x[t])[:, None]
            y[t] = (s * c[t, :, :, None]).sum(1) + rule.d[:, None] * x[t]
            if kept >= 0 and t - begin + 1 == kept_after:
                state.matrices[kept] = s
        state.matrices[target] = s
    y = (y.flatten(1) * torch.nn.functional.silu(z)).unflatten(1, (rule.n_group, -1))
    y = y * torch.rsqrt((y * y).mean(-1, keepdim=True) + rule.eps)
    return (y.flatten(1) * rule.norm).contiguous()


def channel_space(
    x: Tensor, dt: Tensor, b: Tensor, c: Tensor, z: Tensor, rule: ChannelRule, state: StateLayer, paths: Paths
) -> Tensor:
    """S = exp(dt * a) * S + B (dt * x)'; y = silu(z) * (S'C + d * x), where dt is its softplus."""
    channels = x.shape[1]

    def blocks(part: Tensor) -> Tensor:
        return pad(part, (0, -channels % 16)).unflatten(-1, (-1, 16))

    dt = torch.nn.functional.softplus(dt)
    a, dt, new, y = blocks(rule.a.t()).transpose(0, 1), blocks(dt), blocks(dt * x), torch.empty_like(x)  # a [B, dk, 16]
    for begin, end, source, target, kept, kept_after in _each(paths):
        s = torch.zeros_like(a) if source < 0 else state.matrices[source].to(a)
        for t in range(begin, end):
            s = torch.exp(dt[t, :, None] * a) * s + b[t, :, None] * new[t, :, None]
            y[t] = (s * c[t, :, None]).sum(1).flatten()[:channels] + rule.d * x[t]
            if kept >= 0 and t - begin + 1 == kept_after:
                state.matrices[kept] = s
        state.matrices[target] = s
    return y * torch.nn.functional.silu(z)


def _each(paths: Paths) -> list[tuple[int, int, int, int, int, int]]:
    starts = paths.starts.tolist()
    return list(zip(starts, starts[1:], *(p.tolist() for p in paths[1:]), strict=False))
