"""Qwen3-Next: as Qwen3.5-MoE; neighbouring heads of values share a key, and maps lie together, by head of keys."""

from itertools import chain

from gmoe.layers.delta_net import DeltaNet
from gmoe.layers.linear import QuantLinear
from gmoe.layers.weights import Weights
from gmoe.models import qwen35moe


class GroupedDeltaNet(DeltaNet):
    """`ssm_ba` has betas and alphas, `ssm_in` of older files queries, keys, values and z, each by head of keys."""

    neighbours = True

    def maps(self, w: Weights) -> tuple[QuantLinear, QuantLinear, QuantLinear, QuantLinear]:
        """Of the block's input: queries, keys and values; z, alpha and beta."""
        n_embd, each = w.hparams.n_embd, self.n_value // self.n_key
        both = w.linear("ssm_ba", n_embd, 2 * self.n_value)
        beta, alpha = (both.picked(self._parts(2 * each, at, each)) for at in (0, each))
        if w.has("attn_qkv"):
            qkv, z = w.linear("attn_qkv", n_embd, self.qkv_rows), w.linear("attn_gate", n_embd, self.z_rows)
        else:
            d, wide = self.d, each * self.d
            parts = w.linear("ssm_in", n_embd, self.qkv_rows + self.z_rows)
            step = 2 * d + 2 * wide
            order = [self._parts(step, at, n) for at, n in ((0, d), (d, d), (2 * d, wide))]
            qkv, z = parts.picked([*chain(*order)]), parts.picked(self._parts(step, 2 * d + wide, wide))
        return qkv, z, alpha, beta

    def _parts(self, step: int, at: int, n: int) -> list[int]:
        """Rows `at` to `at` + n of every head of keys, which has `step`."""
        return [head * step + at + i for head in range(self.n_key) for i in range(n)]


class Model(qwen35moe.Model):
    """`qwen3next`."""

    recurrent_layer = GroupedDeltaNet
