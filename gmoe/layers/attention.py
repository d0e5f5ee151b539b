"""Attention over the paged cache: grouped queries, sliding or chunked windows, sinks."""

from torch import Tensor

from gmoe.kernels.kv import KvShape
from gmoe.kernels.ops import Curve, DeviceKernels, Heads, Mask, Rotation, attention, gated, lay, scaled, warmth
from gmoe.layers.batch import Batch
from gmoe.layers.linear import QuantLinear, beside
from gmoe.layers.norm import HeadNorm
from gmoe.layers.weights import Weights

causal = Mask("causal")  # everything up to the query itself


def sliding(window: int) -> Mask:
    """The last `window` positions, the query's own included."""
    return Mask("sliding", window)


def chunked(size: int) -> Mask:
    """Everything up to the query in the query's own chunk of `size` positions."""
    return Mask("chunked", size)


def warmed(
    q: Tensor, positions: Tensor, behind: int, step: int, growth: float, on: DeviceKernels | None = None
) -> Tensor:
    """Queries [T, H, d], in their memory, with the temperature of their positions [T], which `warmth` says."""
    return scaled(q.flatten(1), warmth(positions, behind, step, growth, on), on).view(q.shape)


class GQA:
    """Grouped-query attention; an architecture overrides `prepare` where its norms and rotations differ.

    Where a file norms queries and keys, it does so by head, or, `across`, all heads of a token as one. Scores softly
    stay under `cap`, if it is not 0.
    """

    def __init__(
        self,
        w: Weights,
        rope: Rotation | None,
        *,
        mask: Mask = causal,
        scale: float | None = None,
        sinks: Tensor | None = None,
        cap: float = 0.0,
        across: bool = False,
    ):
        hp = w.hparams
        self.layer, self.on = w.layer, w.on
        self.n_head, self.n_kv, self.n_head_k, self.n_head_v = hp.n_head, hp.n_kv, hp.n_head_k, hp.n_head_v
        self.rope = rope
        self.mask = mask
        self.scale = scale or hp.n_head_k**-0.5
        self.sinks, self.cap = sinks, cap
        q, k, v = self.query_rows(), hp.n_kv * hp.n_head_k, hp.n_kv * hp.n_head_v
        self.q_norm: HeadNorm | None = w.head_norm("attn_q_norm", q if across else hp.n_head_k)
        self.k_norm: HeadNorm | None = w.head_norm("attn_k_norm", k if across else hp.n_head_k)
        self.heads = Heads(self.q_norm and self.q_norm.rule, self.k_norm and self.k_norm.rule, rope, w.on)
        self.qkv = beside(*self.maps(w, q, k, v))
        self.output = w.linear("attn_output", hp.n_head * hp.n_head_v, hp.n_embd)
        self.kv_shape = KvShape(hp.n_kv, hp.n_head_k, hp.n_head_v)

    def query_rows(self) -> int:
        """Outputs of the map of queries."""
        return self.n_head * self.n_head_k

    def maps(self, w: Weights, q: int, k: int, v: int) -> list[QuantLinear]:
        """Those of the block's input to queries, keys and values of these widths."""
        n_embd = w.hparams.n_embd
        if w.has("attn_qkv"):
            qkv = w.linear("attn_qkv", n_embd, q + k + v)
            parts = [qkv.rows(0, q), qkv.rows(q, q + k), qkv.rows(q + k, q + k + v)]
            if qkv.bias is not None:
                return parts
            biases = [w.get(f"attn_{name}", ".bias", len(part)) for name, part in zip("qkv", parts, strict=True)]
            lacking = [f"attn_{name}.bias" for name, bias in zip("qkv", biases, strict=True) if bias is None]
            if len(lacking) in (1, 2):  # llama.cpp leaves the others out, which is hardly what the file means
                w.refuse(w.prefix + lacking[0], "required beside attn_qkv with the biases of others")
            return [part.plus(bias) for part, bias in zip(parts, biases, strict=True)]
        return [w.linear(f"attn_{name}", n_embd, width) for name, width in (("q", q), ("k", k), ("v", v))]

    def prepare(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Norms by head, then rotation: q [T, H, dk], k [T, Hkv, dk]."""
        return self.heads(q, k, positions)

    def __call__(self, x: Tensor, batch: Batch) -> Tensor:
        """x [T, D] -> [T, D], on the CPU in the memory of x; this step's keys and values are in the cache then."""
        return self.output(self.attend(x, batch), x)

    def attend(self, x: Tensor, batch: Batch) -> Tensor:
        """What the heads give, side by side: x [T, D] -> [T, H * dv]."""
        q, k, v = self.qkv(x)
        return self.over(q.view(-1, self.n_head, self.n_head_k), k, v, batch)

    def over(self, q: Tensor, k: Tensor, v: Tensor, batch: Batch) -> Tensor:
        """Queries [T, H, dk] over the past and these keys and values, rows [T, Hkv * d] -> [T, H * dv]."""
        q, k = self.prepare(q, k.view(-1, self.n_kv, self.n_head_k), batch.positions)
        batch.kv.write(self.layer, batch.slot_mapping, k, v.view(-1, self.n_kv, self.n_head_v))
        return self.seen(q, batch).flatten(1)

    def seen(self, q: Tensor, batch: Batch) -> Tensor:
        """What prepared queries see of the past and of themselves: [T, H, dk] -> [T, H, dv]."""
        kv = batch.kv.layers[self.layer]
        return attention(q, kv, batch.turns, self.scale, self.mask, self.sinks, on=self.on, cap=self.cap)


class GatedGQA(GQA):
    """What the heads give is multiplied with a curve of `attn_gate` of the block's input, before the output map.

    A gate is one element's, or, `by_head`, one head's.
    """

    def __init__(
        self,
        w: Weights,
        rope: Rotation | None,
        *,
        mask: Mask = causal,
        by_head: bool = False,
        curve: Curve = "sigmoid",
    ):
        super().__init__(w, rope, mask=mask)
        self.curve, self.each = curve, self.n_head_v if by_head else 1
        self.gate = w.linear("attn_gate", w.hparams.n_embd, self.n_head * self.n_head_v // self.each)

    def attend(self, x: Tensor, batch: Batch) -> Tensor:
        """What the heads give, side by side: x [T, D] -> [T, H * dv]."""
        gate = self.gate(x)
        y = super().attend(x, batch)
        if self.each > 1:
            gate, y = gate.view(-1, 1), y.view(-1, self.each)
        return gated(gate, y, self.on, self.curve).view(-1, self.n_head * self.n_head_v)


class QueryGatedGQA(GQA):
    """The map of queries gives of each head a query and, beside it, a gate for what the head gives (Qwen3-Next)."""

    def query_rows(self) -> int:
        """Query and gate."""
        return 2 * super().query_rows()

    def attend(self, x: Tensor, batch: Batch) -> Tensor:
        """What the heads give, side by side: x [T, D] -> [T, H * dv]."""
        q, k, v = self.qkv(x)
        both = q.view(-1, self.n_head, 2 * self.n_head_k)
        gate = lay(both[:, :, self.n_head_k :]).flatten(1)
        return gated(gate, self.over(lay(both[:, :, : self.n_head_k]), k, v, batch), self.on)
