"""Attention with norms of queries, keys, values and its result; and that which borrows an earlier layer's keys."""

from torch import Tensor

from gmoe.kernels.kv import KvShape
from gmoe.kernels.ops import Mask, Rotation, attention
from gmoe.layers.attention import GQA
from gmoe.layers.batch import Batch
from gmoe.layers.linear import QuantLinear
from gmoe.layers.norm import RMSNorm
from gmoe.layers.weights import Weights


class NormedGQA(GQA):
    """Values are normed by head without a weight, and those of a file without `attn_v` are its keys before theirs."""

    def __init__(self, w: Weights, rope: Rotation, *, mask: Mask, scale: float):
        w.need("attn_q_norm.weight")
        super().__init__(w, rope, mask=mask, scale=scale)
        self.v_norm = RMSNorm(None, w.eps, on=w.on)
        self.after = w.norm("post_attention_norm")

    def maps(self, w: Weights, q: int, k: int, v: int) -> list[QuantLinear]:
        """Two, where keys are values as well."""
        w.need("attn_k_norm.weight")
        if w.has("attn_qkv") or w.has("attn_v"):
            return super().maps(w, q, k, v)
        return [w.linear("attn_q", w.hparams.n_embd, q), w.linear("attn_k", w.hparams.n_embd, k)]

    def attend(self, x: Tensor, batch: Batch) -> Tensor:
        """What the heads give, side by side: x [T, D] -> [T, H * dv]."""
        q, k, *v = self.qkv(x)
        values = self.v_norm((v[0] if v else k).view(-1, self.n_kv, self.n_head_v))
        return self.over(q.view(-1, self.n_head, self.n_head_k), k, values, batch)

    def __call__(self, x: Tensor, batch: Batch) -> Tensor:
        """x [T, D] -> [T, D]."""
        return self.after(super().__call__(x, batch))


class BorrowedKV(NormedGQA):
    """Queries alone, over what the earlier layer `of` keeps; nothing is written, and the cache has no room for it."""

    def __init__(self, w: Weights, rope: Rotation, of: int, *, mask: Mask, scale: float):
        super().__init__(w, rope, mask=mask, scale=scale)
        w.skip("attn_k.weight", "attn_v.weight")
        self.of = of
        self.kv_shape = KvShape(0, self.n_head_k, self.n_head_v)

    def maps(self, w: Weights, q: int, k: int, v: int) -> list[QuantLinear]:
        """That of the queries."""
        if w.has("attn_qkv"):
            return [w.linear("attn_qkv", w.hparams.n_embd, q + k + v).rows(0, q)]
        return [w.linear("attn_q", w.hparams.n_embd, q)]

    def attend(self, x: Tensor, batch: Batch) -> Tensor:
        """What the heads give, side by side: x [T, D] -> [T, H * dv]."""
        q = self.qkv(x)[0].view(-1, self.n_head, self.n_head_k)
        q, _ = self.prepare(q, q[:, :0], batch.positions)
        kv = batch.kv.layers[self.of]
        return attention(q, kv, batch.turns, self.scale, self.mask, self.sinks, on=self.on).flatten(1)
