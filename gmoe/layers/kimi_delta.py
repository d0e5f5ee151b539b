"""Kimi's delta attention: a delta net whose heads forget each channel of their keys by itself (Kimi-Linear)."""

from collections.abc import Callable

from torch import Tensor

from gmoe.kernels import recurrent
from gmoe.kernels.recurrent import KimiRule, ShortConv, StateShape
from gmoe.layers.batch import Batch
from gmoe.layers.linear import QuantLinear, beside
from gmoe.layers.recurrent_cache import RecurrentLayer
from gmoe.layers.weights import Weights

KDA_KEYS = frozenset({"kda.head_dim", "kda.gate_lower_bound", "ssm.conv_kernel"})


class KimiDelta(RecurrentLayer):
    """Queries, keys and values, each behind a convolution of its own, then the rule; what fades and gates is narrow.

    Lengths of queries and keys are told with `key_eps`, or the eps of norms.
    """

    def __init__(self, w: Weights, key_eps: float | None = None):
        hp, d = w.hparams, w.hparams.kda_head_dim
        if not d:
            w.refuse(f"{hp.architecture}.kda.head_dim", f"required by architecture {hp.architecture}")
        if hp.ssm_d_conv < 2:
            w.refuse(f"{hp.architecture}.ssm.conv_kernel", f"{hp.ssm_d_conv}; at least 2 is supported")
        self.layer, self.wide = w.layer, hp.n_head * d
        self.state_shape = StateShape(hp.ssm_d_conv - 1, 3 * self.wide, hp.n_head, d, d)
        weights = [w.shaped(f"ssm_conv1d_{part}", (self.wide, hp.ssm_d_conv)) for part in "qkv"]
        self.convs = [ShortConv(weight, on=w.on) for weight in weights]
        a, dt_bias = self._rates(w), w.vector("ssm_dt", self.wide, ".bias")
        floor = 0.0 if hp.kda_floor is None else hp.kda_floor
        if hp.kda_floor is not None and floor >= 0.0:
            w.refuse(f"{hp.architecture}.kda.gate_lower_bound", f"{floor}; only numbers below 0 are supported")
        rule = KimiRule(hp.n_head, a, dt_bias, w.vector("ssm_norm", d), w.eps, key_eps or w.eps, floor)
        self.learn = recurrent.KimiDelta(rule, w.on)
        self.inputs = beside(*self._qkv(w), w.linear("ssm_beta", hp.n_embd, hp.n_head), *self._steps(w))
        self.output = w.linear("attn_output", self.wide, hp.n_embd)

    def _rates(self, w: Weights) -> Tensor:
        """How fast heads forget, below 0: [H]."""
        return w.shaped("ssm_a", (w.hparams.n_head,), "")

    def _steps(self, w: Weights) -> list[QuantLinear]:
        """Maps of the block's input to what fades and to what gates, before `fade` and `gate`."""
        hp, d = w.hparams, w.hparams.kda_head_dim
        self.fade: Callable[[Tensor], Tensor] = w.linear("ssm_f_b", d, self.wide)
        self.gate: Callable[[Tensor], Tensor] = w.linear("ssm_g_b", d, self.wide)
        return [w.linear("ssm_f_a", hp.n_embd, d), w.linear("ssm_g_a", hp.n_embd, d)]

    def _qkv(self, w: Weights) -> list[QuantLinear]:
        """Queries, keys and values of the block's input, whose maps may lie in one tensor."""
        for name in ("attn_qkv", "attn_q", "attn_k", "attn_v"):
            if w.prefix + name + ".bias" in w.file.tensors:  # which llama.cpp reads, and leaves out
                w.refuse(w.prefix + name + ".bias", "before a short convolution a bias is not supported")
        if not w.has("attn_qkv"):
            return [w.linear(f"attn_{part}", w.hparams.n_embd, self.wide) for part in "qkv"]
        both = w.linear("attn_qkv", w.hparams.n_embd, 3 * self.wide)
        return [both.rows(n * self.wide, (n + 1) * self.wide) for n in range(3)]

    def __call__(self, x: Tensor, batch: Batch) -> Tensor:
        """x [T, D] -> [T, D]; the sequences' states are at its last rows then."""
        assert batch.states is not None
        state = batch.states.layers[self.layer]
        *qkv, beta, fade, gate = self.inputs(x)
        q, k, v = (
            conv(part, state.part(n * self.wide, self.wide), batch.routes, silu=True)
            for n, (conv, part) in enumerate(zip(self.convs, qkv, strict=True))
        )
        return self.output(self.learn(q, k, v, self.fade(fade), beta, self.gate(gate), state, batch.routes))


class WideGateDelta(KimiDelta):
    """What gates comes of the block's input at once (Kimi-K3)."""

    def _steps(self, w: Weights) -> list[QuantLinear]:
        """Maps of the block's input to what fades, before `fade`, and to what gates."""
        hp, d = w.hparams, w.hparams.kda_head_dim
        self.fade, self.gate = w.linear("ssm_f_b", d, self.wide), lambda x: x
        return [w.linear("ssm_f_a", hp.n_embd, d), w.linear("ssm_g", hp.n_embd, self.wide)]


class WideDelta(KimiDelta):
    """What fades and gates comes of the block's input at once; files have the rates above 0 (Ling 3.0)."""

    def _rates(self, w: Weights) -> Tensor:
        """How fast heads forget, below 0: [H]."""
        return -super()._rates(w)

    def _steps(self, w: Weights) -> list[QuantLinear]:
        """Maps of the block's input to what fades and to what gates."""
        self.fade = self.gate = lambda x: x
        return [w.linear(name, w.hparams.n_embd, self.wide) for name in ("ssm_f_a", "ssm_g_a")]
