"""MLA: multi-head latent attention (DeepSeek-V2), absorbed: one latent row a token serves all heads."""

from collections.abc import Callable

import torch
from torch import Tensor

from gmoe.gguf.file import UnsupportedModel
from gmoe.kernels.formats import FORMATS, QuantTensor
from gmoe.kernels.kv import KvShape
from gmoe.kernels.ops import HeadMaps, Rotation, attention, dequantize, gated, lay
from gmoe.layers.attention import causal, warmed
from gmoe.layers.batch import Batch
from gmoe.layers.rope import yarn_magnitude
from gmoe.layers.weights import Weights


class MLA:
    """`k_b` carries queries into the latent space, `v_b` results out of it; older files hold both as `kv_b`.

    Without a `turn` it knows of no positions: nothing is rotated, and nothing grows with them or with a scaling.
    """

    sinks: Tensor | None = None  # [H], logits that take part and carry no value

    def __init__(self, w: Weights, turn: Rotation | None):
        hp = w.hparams
        self.layer, self.on = w.layer, w.on
        self.n_head = hp.n_head
        self.n_lora = hp.kv_lora_rank
        self.n_rot = hp.rope_dimension_count or 0
        self.n_head_k = hp.key_length_mla or hp.n_head_k
        self.n_head_v = hp.value_length_mla or hp.n_head_v
        self.n_nope = self.n_head_k - self.n_rot
        turns = hp.rope_dimension_count is not None if turn is None else self.n_rot > 0
        if not self.n_lora or self.n_nope <= 0 or not turns:
            raise UnsupportedModel(
                hp.file,
                f"{hp.architecture}.attention.kv_lora_rank",
                "latent attention needs it and rope.dimension_count",
            )
        self.turn, self.scale, self.mask = turn, self.n_head_k**-0.5, causal
        self.step, self.growth = 0, 0.0
        if turn is not None:
            # llama.cpp squares YaRN's magnitude into the softmax scale; the converter stores 0.1 * mscale_all_dim.
            self.scale *= (hp.rope_attn_factor * yarn_magnitude(hp, hp.yarn_log_multiplier / 0.1)) ** 2
            self.step, self.growth = hp.attn_temperature_length, hp.attn_temperature_scale
        if self.growth and not self.step:
            w.refuse(f"{hp.architecture}.attention.temperature_length", "required beside attention.temperature_scale")
        q_width = self.n_head * self.n_head_k
        if hp.q_lora_rank:
            q_a, q_a_norm = w.linear("attn_q_a", hp.n_embd, hp.q_lora_rank), w.norm("attn_q_a_norm", n=hp.q_lora_rank)
            self.low: Callable[[Tensor], Tensor] = lambda x: q_a_norm(q_a(x))
            self.q = w.linear("attn_q_b", hp.q_lora_rank, q_width)
        else:
            self.low, self.q = lambda x: x, w.linear("attn_q", hp.n_embd, q_width)
        self.kv_a = w.linear("attn_kv_a_mqa", hp.n_embd, self.n_lora + self.n_rot)
        self.kv_a_norm = w.norm("attn_kv_a_norm", n=self.n_lora)
        self.k_b, self.v_b = (HeadMaps(maps, w.activations, w.on) for maps in self._heads(w))
        self.output = w.linear("attn_output", self.n_head * self.n_head_v, hp.n_embd)
        self.kv_shape = KvShape(1, self.n_lora + self.n_rot, self.n_lora)

    def _heads(self, w: Weights) -> tuple[list[QuantTensor], list[QuantTensor]]:
        """By head: k_b [n_lora, n_nope] and v_b [n_head_v, n_lora]."""
        if w.has("attn_k_b"):
            k = w.quant("attn_k_b", shape=(self.n_head, self.n_lora, self.n_nope))
            v = w.quant("attn_v_b", shape=(self.n_head, self.n_head_v, self.n_lora))
            return _split(k, self.n_head), _split(v, self.n_head)
        rows = self.n_nope + self.n_head_v  # by head, n_nope of k and then n_head_v of v
        kv = w.matrix("attn_kv_b", self.n_lora, self.n_head * rows)
        heads = [
            QuantTensor(kv.data[h * rows : (h + 1) * rows], kv.format, (rows, self.n_lora)) for h in range(self.n_head)
        ]
        ks = [_as_f32(dequantize(head, on=w.on)[: self.n_nope].T.contiguous()) for head in heads]
        vs = [QuantTensor(h.data[self.n_nope :], h.format, (self.n_head_v, self.n_lora)) for h in heads]
        return ks, vs

    def __call__(self, x: Tensor, batch: Batch) -> Tensor:
        """x [T, D] -> [T, D], on the CPU in the memory of x; this step's latent rows are in the cache afterwards."""
        return self.attend(x, self.low(x), batch)

    def attend(self, x: Tensor, low: Tensor, batch: Batch) -> Tensor:
        """The same, beside what maps to queries [T, n]."""
        batch.kv.write(self.layer, batch.slot_mapping, *self._latent(x, batch.positions))
        mixed = self.mixed(self._query(low, batch.positions), batch)
        return self.output(self.given(self.v_b(mixed), x).flatten(1), x)

    def given(self, y: Tensor, x: Tensor) -> Tensor:
        """What heads give [T, H, n_head_v], for the block's input, as the output map reads it."""
        return y

    def mixed(self, query: Tensor, batch: Batch) -> Tensor:
        """What queries [T, H, n_lora + n_rot] see of the latent rows: -> [T, H, n_lora], in their memory."""
        layer, part = batch.kv.layers[self.layer], query[..., : self.n_lora]
        return attention(query, layer, batch.turns, self.scale, self.mask, self.sinks, part, self.on)

    def _query(self, low: Tensor, positions: Tensor) -> Tensor:
        """What maps to queries, [T, n] -> [T, H, n_lora + n_rot]."""
        q = self.q(low).view(-1, self.n_head, self.n_head_k)
        query = q.new_empty(*q.shape[:2], self.n_lora + self.n_rot)
        self.k_b(q[..., : self.n_nope], query[..., : self.n_lora])
        self._lay(q[..., self.n_nope :], positions, query[..., self.n_lora :])
        return warmed(query, positions, 0, self.step, self.growth, self.on) if self.growth else query

    def _latent(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """x [T, D] -> what the cache keeps: a key [T, 1, n_lora + n_rot] and a value [T, 1, n_lora]."""
        latent = self.kv_a(x)[:, None]
        value = self.kv_a_norm(lay(latent[..., : self.n_lora]))
        key = torch.empty_like(latent)
        lay(value, key[..., : self.n_lora])
        self._lay(self.placed(latent[..., self.n_lora :]), positions, key[..., self.n_lora :])
        return key, value

    def placed(self, key: Tensor) -> Tensor:
        """What positions count for of a key [T, 1, n_rot], before it is turned."""
        return key

    def _lay(self, x: Tensor, positions: Tensor, out: Tensor) -> None:
        """Into `out` what of heads [T, H, n_rot] positions count for, turned by them if they do."""
        lay(x if self.turn is None else self.turn(lay(x), positions), out)


class GatedMLA(MLA):
    """What a head gives is multiplied with the sigmoid of `attn_gate` of the block's input (Ling 3.0).

    Nothing grows with positions, and with a scaling only what is turned.
    """

    def __init__(self, w: Weights, turn: Rotation):
        super().__init__(w, turn)
        self.scale, self.growth = self.n_head_k**-0.5, 0.0
        self.gate = w.linear("attn_gate", w.hparams.n_embd, self.n_head)

    def given(self, y: Tensor, x: Tensor) -> Tensor:
        """What heads give [T, H, n_head_v], gated."""
        return gated(self.gate(x).view(-1, 1), y.flatten(0, 1), self.on).view(y.shape)


class WideGatedMLA(MLA):
    """Each number that heads give times the sigmoid of `attn_gate` of the block's input (Kimi-K3, Hunyuan 4)."""

    def __init__(self, w: Weights, turn: Rotation | None):
        super().__init__(w, turn)
        self.gate = w.linear("attn_gate", w.hparams.n_embd, self.n_head * self.n_head_v)

    def given(self, y: Tensor, x: Tensor) -> Tensor:
        """What heads give [T, H, n_head_v], gated."""
        return gated(self.gate(x), y.flatten(1), self.on).view(y.shape)


def _split(tensor: QuantTensor, n_head: int) -> list[QuantTensor]:
    return [QuantTensor(tensor.data[h], tensor.format, tensor.shape[1:]) for h in range(n_head)]


def _as_f32(x: Tensor) -> QuantTensor:
    return QuantTensor(x.view(torch.uint8), FORMATS["F32"], tuple(x.shape))
