"""Attention over the paged cache: grouped queries, sliding or chunked windows, sinks."""

from collections.abc import Callable

import torch
from torch import Tensor

from gmoe.layers.batch import Batch
from gmoe.layers.norm import HeadNorm
from gmoe.layers.rope import Rope
from gmoe.layers.weights import Weights

Mask = Callable[[Tensor, Tensor], Tensor]  # query positions [t, 1], key positions [1, L] -> may be seen, bool [t, L]

_QUERIES = 128  # rows of scores held at once


def causal(query: Tensor, key: Tensor) -> Tensor:
    """Everything up to the query itself."""
    return key <= query


def sliding(window: int) -> Mask:
    """The last `window` positions, the query's own included."""
    return lambda query, key: (key <= query) & (query - key < window)


def chunked(size: int) -> Mask:
    """Everything up to the query in the query's own chunk of `size` positions."""
    return lambda query, key: (key <= query) & (key >= query // size * size)


def attend(
    q: Tensor, k: Tensor, v: Tensor, positions: Tensor, scale: float, mask: Mask, sinks: Tensor | None = None
) -> Tensor:
    """One sequence: q [t, H, dk], k [L, Hkv, dk], v [L, Hkv, dv], positions [t] -> [t, H, dv].

    `sinks` [H] are logits that take part in the softmax and carry no value.
    """
    t, heads, _ = q.shape
    length, n_kv, width = v.shape
    keys, values = k.permute(1, 2, 0), v.transpose(0, 1)  # [Hkv, dk, L], [Hkv, L, dv]
    out = q.new_empty(t, heads, width)
    for begin in range(0, t, _QUERIES):
        part = q[begin : begin + _QUERIES]
        n = len(part)
        grouped = part.view(n, n_kv, -1, part.shape[-1]).permute(1, 2, 0, 3).flatten(1, 2)  # [Hkv, G * n, dk]
        scores = (grouped @ keys * scale).view(heads, n, length)
        seen = mask(positions[begin : begin + n, None], torch.arange(length)[None])
        scores = scores.masked_fill(~seen, float("-inf"))
        if sinks is not None:
            scores = torch.cat((scores, sinks[:, None, None].expand(-1, n, 1)), -1)
        weights = torch.softmax(scores, -1)[..., :length].reshape(n_kv, -1, length)  # [Hkv, G * n, L]
        out[begin : begin + n] = (weights @ values).view(heads, n, width).transpose(0, 1)
    return out


class GQA:
    """Grouped-query attention; an architecture overrides `prepare` where its norms and rotations differ."""

    def __init__(
        self,
        w: Weights,
        rope: Rope | None,
        *,
        mask: Mask = causal,
        scale: float | None = None,
        sinks: Tensor | None = None,
    ):
        hp = w.hparams
        self.layer = w.layer
        self.n_head, self.n_kv, self.n_head_k, self.n_head_v = hp.n_head, hp.n_kv, hp.n_head_k, hp.n_head_v
        self.rope = rope
        self.mask = mask
        self.scale = scale or hp.attention_scale or hp.n_head_k**-0.5
        self.sinks = sinks
        self.q_norm: HeadNorm | None = w.head_norm("attn_q_norm")
        self.k_norm: HeadNorm | None = w.head_norm("attn_k_norm")
        q, k, v = hp.n_head * hp.n_head_k, hp.n_kv * hp.n_head_k, hp.n_kv * hp.n_head_v
        if w.has("attn_qkv"):
            qkv = w.linear("attn_qkv", hp.n_embd, q + k + v)
            self.q, self.k, self.v = qkv.rows(0, q), qkv.rows(q, q + k), qkv.rows(q + k, q + k + v)
        else:
            self.q, self.k, self.v = (w.linear(f"attn_{n}", hp.n_embd, o) for n, o in (("q", q), ("k", k), ("v", v)))
        self.output = w.linear("attn_output", hp.n_head * hp.n_head_v, hp.n_embd)
        self.widths = (k, v)

    def prepare(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Norms by head, then rotation: q [T, H, dk], k [T, Hkv, dk]."""
        q = q if self.q_norm is None else self.q_norm(q)
        k = k if self.k_norm is None else self.k_norm(k)
        if self.rope is None:
            return q, k
        return self.rope(q, positions), self.rope(k, positions)

    def __call__(self, x: Tensor, batch: Batch) -> Tensor:
        """x [T, D] -> [T, D]; this step's keys and values are in the cache afterwards."""
        q = self.q(x).view(-1, self.n_head, self.n_head_k)
        k = self.k(x).view(-1, self.n_kv, self.n_head_k)
        q, k = self.prepare(q, k, batch.positions)
        batch.kv.write(self.layer, batch.slot_mapping, k.flatten(1), self.v(x))
        out = q.new_empty(len(q), self.n_head * self.n_head_v)
        for begin, end, blocks, length in spans(batch):
            keys, values = batch.kv.read(self.layer, blocks, length)
            y = attend(
                q[begin:end],
                keys.view(length, self.n_kv, self.n_head_k),
                values.view(length, self.n_kv, self.n_head_v),
                batch.positions[begin:end],
                self.scale,
                self.mask,
                self.sinks,
            )
            out[begin:end] = y.flatten(1)
        return self.output(out)


def spans(batch: Batch) -> list[tuple[int, int, Tensor, int]]:
    """Each sequence of a batch: its rows [begin, end), its block table, its length after this step."""
    starts, lengths = batch.query_starts.tolist(), batch.context_lens.tolist()
    return [(starts[s], starts[s + 1], batch.block_tables[s], lengths[s]) for s in range(len(lengths))]
