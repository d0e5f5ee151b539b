"""Kimi's delta attention: a delta net whose heads forget each channel of their keys by itself (Kimi-Linear)."""

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
        a, dt_bias = w.shaped("ssm_a", (hp.n_head,), ""), w.vector("ssm_dt", self.wide, ".bias")
        floor = 0.0 if hp.kda_floor is None else hp.kda_floor
        if hp.kda_floor is not None and floor >= 0.0:
            w.refuse(f"{hp.architecture}.kda.gate_lower_bound", f"{floor}; only numbers below 0 are supported")
        rule = KimiRule(hp.n_head, a, dt_bias, w.vector("ssm_norm", d), w.eps, key_eps or w.eps, floor)
        self.learn = recurrent.KimiDelta(rule, w.on)
        narrow = w.linear("ssm_f_a", hp.n_embd, d), w.linear("ssm_g_a", hp.n_embd, d)
        self.inputs = beside(*self._qkv(w), w.linear("ssm_beta", hp.n_embd, hp.n_head), *narrow)
        self.fade, self.gate = w.linear("ssm_f_b", d, self.wide), w.linear("ssm_g_b", d, self.wide)
        self.output = w.linear("attn_output", self.wide, hp.n_embd)

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
