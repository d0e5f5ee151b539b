"""What a step does beside products with weights, in plain torch: the truth, and the way of other devices."""

from enum import IntEnum
from typing import NamedTuple

import torch
import torch.nn.functional as F
from gmoe.kernels.activations import kind_of
from gmoe.kernels.kv import KvLayer
from torch import Tensor

QUERIES = 128  # rows of scores held at once
SMALLEST_SUM = 6.103515625e-5  # llama.cpp's floor under the sum of the chosen weights


class Mask(NamedTuple):
    """Which keys a query sees: all up to itself ("causal"), the last `size`, or those of its own chunk of `size`."""

    kind: str  # "causal", "sliding", "chunked"
    size: int = 0

    def __call__(self, query: Tensor, key: Tensor) -> Tensor:
        """query positions [t, 1], key positions [1, L] -> bool [t, L]."""
        seen = key <= query
        if self.kind == "sliding":
            return seen & (query - key < self.size)
        return seen & (key >= query // self.size * self.size) if self.kind == "chunked" else seen


class Score(IntEnum):
    """How a router's logits become scores; softmax_weight: the softmax over the chosen logits alone."""

    SOFTMAX = 0
    SIGMOID = 1
    SOFTMAX_WEIGHT = 2
    SQRT_SOFTPLUS = 3


class RouterRule(NamedTuple):
    """How experts are chosen and weighed; `bias` [E] changes who is chosen alone, `each` [E] the weights alone.

    Where `chunk` is not 1, so many experts, one after another, are one: in the place of who is chosen comes, with its
    own score, the expert that has the number of that one's chunk.
    """

    score: Score
    experts: int
    chosen: int
    groups: int = 1
    groups_used: int = 1
    bias: Tensor | None = None
    renormalize: bool = False
    scale: float = 1.0
    each: Tensor | None = None
    chunk: int = 1


class HeadRule(NamedTuple):
    """A norm of queries or keys: by head, or over all heads at once where the weight is that wide."""

    weight: Tensor  # [d] or [H * d]
    bias: Tensor | None
    eps: float


Norms = tuple[HeadRule | None, HeadRule | None]  # of queries and of keys


class Turn(NamedTuple):
    """How heads are rotated by position: radians a position; neox pairs halves, else neighbours."""

    frequencies: Tensor  # [n_rot / 2]
    magnitude: float
    neox: bool


class Turns(NamedTuple):
    """Whose rows a step has: S sequences, T rows."""

    positions: Tensor  # [T] int64
    block_tables: Tensor  # [S, max_blocks] int32
    context_lens: Tensor  # [S] int32, after this step
    query_starts: Tensor  # [S + 1] int32
    starts: Tensor | None = None  # the same beside the positions, where these are on a device


def rms_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """x / rms(x) * weight + bias over the last dimension."""
    y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def rotate(x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, neox: bool) -> Tensor:
    """x [T, H, d] rotated by the tables [n, n_rot / 2]; neox pairs halves, else neighbours."""
    cos, sin = cos[positions][:, None], sin[positions][:, None]
    n_rot = 2 * cos.shape[-1]
    rot, rest = x[..., :n_rot], x[..., n_rot:]
    if neox:
        a, b = rot.chunk(2, -1)
        out = torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
    else:
        a, b = rot[..., 0::2], rot[..., 1::2]
        out = torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
    return torch.cat((out, rest), -1)


def activate(name: str, gate: Tensor | None, up: Tensor) -> Tensor:
    """The activation between up and down; names as in llama.cpp's `build_moe_ffn`."""
    kind, most, most_up = kind_of(name)
    if kind == "relu2":
        return F.relu(up).square()
    if gate is None:
        raise ValueError(f"activation {name!r} needs a gate")
    if kind == "swiglu":
        return F.silu(gate) * up
    if kind == "geglu":
        return F.gelu(gate, approximate="tanh") * up
    if kind == "reglu":
        return F.relu(gate) * up
    if kind == "swiglu_within":
        return F.silu(gate).clamp(max=most) * up.clamp(-most, most)
    if kind == "swiglu_under":
        return F.silu(gate.clamp(max=most)) * up.clamp(-most, most)
    if kind == "situ":
        gate = most * torch.tanh(gate / most) * torch.sigmoid(gate)
        return gate * (most_up * torch.tanh(up / most_up) if most_up > 0.0 else up)
    gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
    return gate * torch.sigmoid(1.702 * gate) * (up + 1.0)


def choose(logits: Tensor, rule: RouterRule) -> tuple[Tensor, Tensor]:
    """logits [T, E] -> ids [T, k] int32, weights [T, k], step by step as llama.cpp's `build_moe_ffn`; equals by id."""
    given = scores(logits, rule)
    ids = _best(selection(logits, given, rule), rule.chosen)
    if rule.chunk > 1:
        ids = (ids.float() * (1.0 / rule.chunk)).long()  # as llama.cpp: 41 / 41 is below 1
    return ids.int(), weigh(given, ids, rule)


def scores(logits: Tensor, rule: RouterRule) -> Tensor:
    """[T, E], from which weights come; for softmax_weight still the logits."""
    if rule.score is Score.SOFTMAX:
        return torch.softmax(logits, -1)
    if rule.score is Score.SIGMOID:
        return torch.sigmoid(logits)
    return logits if rule.score is Score.SOFTMAX_WEIGHT else F.softplus(logits).sqrt()


def selection(logits: Tensor, given: Tensor, rule: RouterRule) -> Tensor:
    """[T, E], by which experts are chosen: scores, biased, -inf outside the chosen groups; of a plain rule the logits,
    since scores of logits that differ can round to equals."""
    if rule.bias is None and rule.groups <= 1:
        return logits
    biased = given if rule.bias is None else given + rule.bias
    return biased if rule.groups <= 1 else _best_groups(biased, rule.groups, rule.groups_used)


def weigh(given: Tensor, ids: Tensor, rule: RouterRule) -> Tensor:
    """The weights of ids [T, k] by scores [T, E]; -1, which only policies say, is nobody."""
    weights = given.gather(-1, ids.clamp(min=0))
    nobody = ids < 0
    if rule.score is Score.SOFTMAX_WEIGHT:
        weights = torch.softmax(weights.masked_fill(nobody, float("-inf")), -1).nan_to_num(0.0)
    else:
        weights = weights.masked_fill(nobody, 0.0)
    if rule.renormalize:
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=SMALLEST_SUM)
    weights = weights * rule.scale
    return weights if rule.each is None else weights * rule.each[ids.clamp(min=0)]


def stream_weights(mixes: Tensor, n: int, rounds: int, eps: float) -> tuple[Tensor, Tensor]:
    """Of mixes [T, (2 + n) * n]: what each of n streams is read with [T, 1, n], and written with [T, n, 1 + n]."""
    read, given, across = mixes.split((n, n, n * n), -1)
    across = torch.softmax(across.unflatten(-1, (n, n)), -1) + eps  # from each stream to each
    across = across / (across.sum(1, keepdim=True) + eps)
    for _ in range(1, rounds):
        across = across / (across.sum(2, keepdim=True) + eps)
        across = across / (across.sum(1, keepdim=True) + eps)
    write = torch.cat((2.0 * torch.sigmoid(given)[:, :, None], across.transpose(1, 2)), -1)
    return torch.sigmoid(read)[:, None] + eps, write


def blended(x: Tensor, y: Tensor | None, weights: Tensor) -> Tensor:
    """Of streams x [T, n, D], behind y [T, D] if given, the sums by weights [T, m, n] or [T, m, 1 + n]: [T, m, D]."""
    return weights @ (x if y is None else torch.cat((y[:, None], x), 1))


def attention(
    q: Tensor, kv: KvLayer, turns: Turns, scale: float, mask: Mask, sinks: Tensor | None, cap: float = 0.0
) -> Tensor:
    """q [T, H, dk] over the cache -> [T, H, dv]; `sinks` [H] are logits that take part and carry no value.

    Scores, but for these, become cap * tanh(score / cap) where `cap` is not 0.
    """
    out = q.new_empty(len(q), q.shape[1], kv.shape.dv)
    starts, lengths = turns.query_starts.tolist(), turns.context_lens.tolist()
    for s, length in enumerate(lengths):
        begin, end = starts[s], starts[s + 1]
        keys, values = kv.read(turns.block_tables[s], length)
        for at in range(begin, end, QUERIES):
            rows = slice(at, min(at + QUERIES, end))
            out[rows] = _attend(q[rows], keys, values, turns.positions[rows], scale, mask, sinks, cap)
    return out


def _attend(
    q: Tensor, k: Tensor, v: Tensor, positions: Tensor, scale: float, mask: Mask, sinks: Tensor | None, cap: float
) -> Tensor:
    (t, heads, _), (length, n_kv, width) = q.shape, v.shape
    grouped = q.view(t, n_kv, -1, q.shape[-1]).permute(1, 2, 0, 3).flatten(1, 2)  # [Hkv, G * t, dk]
    scores = (grouped @ k.permute(1, 2, 0) * scale).view(heads, t, length)
    scores = cap * torch.tanh(scores / cap) if cap else scores
    seen = mask(positions[:, None], torch.arange(length, device=q.device)[None])
    scores = scores.masked_fill(~seen, float("-inf"))
    if sinks is not None:
        scores = torch.cat((scores, sinks[:, None, None].expand(-1, t, 1)), -1)
    weights = torch.softmax(scores, -1)[..., :length].reshape(n_kv, -1, length)  # [Hkv, G * t, L]
    return (weights @ v.transpose(0, 1)).view(heads, t, width).transpose(0, 1)


def _best_groups(selection: Tensor, n_groups: int, n_used: int) -> Tensor:
    """Scores [T, E] with -inf outside the `n_used` groups whose two best experts sum highest."""
    grouped = selection.view(len(selection), n_groups, -1)  # [T, groups, E / groups]
    merit = grouped.topk(min(2, grouped.shape[-1]), -1).values.sum(-1)
    kept = torch.zeros_like(merit, dtype=torch.bool).scatter_(-1, _best(merit, n_used), True)
    return grouped.masked_fill(~kept[..., None], float("-inf")).view(selection.shape)


def _best(x: Tensor, k: int) -> Tensor:
    """Places [T, k] of the k largest of x [T, n], which torch's topk leaves open where some are equal."""
    return x.argsort(dim=-1, descending=True, stable=True)[:, :k]
