"""Gated delta nets: linear attention that forgets, and learns what it did not know (Gated DeltaNet, Qwen3-Next)."""

from torch import Tensor

from gmoe.kernels import recurrent
from gmoe.kernels.ops import dequantize
from gmoe.kernels.recurrent import DeltaRule, ShortConv, StateShape
from gmoe.layers.batch import Batch
from gmoe.layers.linear import QuantLinear, beside
from gmoe.layers.recurrent_cache import RecurrentLayer
from gmoe.layers.weights import Weights


class DeltaNet(RecurrentLayer):
    """A short convolution over queries, keys and values, then the rule; an architecture overrides `maps`.

    Heads of values share those of queries and keys: `neighbours` the same one, or, as some files have them, in turn.
    What a head gives is gated by the SiLU of z, or by its `sigmoid`.
    """

    neighbours = False
    sigmoid = False

    def __init__(self, w: Weights):
        hp = w.hparams
        self.layer = w.layer
        self.n_key, self.n_value, self.d = hp.ssm_n_group, hp.ssm_dt_rank, hp.ssm_d_state
        prefix = hp.architecture + ".ssm."
        if not self.n_key or self.n_value % self.n_key or not self.n_value:
            w.refuse(prefix + "group_count", f"{self.n_key} heads of keys for {self.n_value} of values")
        if hp.ssm_d_conv < 2:
            w.refuse(prefix + "conv_kernel", f"{hp.ssm_d_conv}; at least 2 is supported")
        if hp.ssm_d_inner != self.n_value * self.d:
            w.refuse(prefix + "inner_size", f"{hp.ssm_d_inner} for {self.n_value} heads of {self.d}")
        self.qkv_rows, self.z_rows = (2 * self.n_key + self.n_value) * self.d, self.n_value * self.d
        self.state_shape = StateShape(hp.ssm_d_conv - 1, self.qkv_rows, self.n_value, self.d, self.d)
        w.need("ssm_a", "ssm_dt.bias", "ssm_norm.weight", "ssm_conv1d.weight")
        conv = dequantize(w.quant("ssm_conv1d", shape=(self.qkv_rows, hp.ssm_d_conv)), on=w.on)
        self.conv = ShortConv(conv, on=w.on)
        norm = w.norm("ssm_norm", n=self.d)
        a, dt_bias = w.get("ssm_a", "", self.n_value), w.get("ssm_dt", ".bias", self.n_value)
        assert a is not None and dt_bias is not None and norm.weight is not None
        which = self.neighbours, self.sigmoid
        rule = DeltaRule(self.n_key, self.n_value, a, dt_bias, norm.weight, norm.eps, *which)
        self.learn = recurrent.DeltaNet(rule, w.on)
        self.inputs = beside(*self.maps(w))
        self.output = w.linear("ssm_out", self.z_rows, hp.n_embd)

    def maps(self, w: Weights) -> tuple[QuantLinear, QuantLinear, QuantLinear, QuantLinear]:
        """Of the block's input: queries, keys and values; z, alpha and beta."""
        n_embd = w.hparams.n_embd
        qkv, z = w.linear("attn_qkv", n_embd, self.qkv_rows), w.linear("attn_gate", n_embd, self.z_rows)
        return qkv, z, w.linear("ssm_alpha", n_embd, self.n_value), w.linear("ssm_beta", n_embd, self.n_value)

    def __call__(self, x: Tensor, batch: Batch) -> Tensor:
        """x [T, D] -> [T, D]; the sequences' states are at its last rows then."""
        assert batch.states is not None
        state = batch.states.layers[self.layer]
        qkv, z, alpha, beta = self.inputs(x)
        qkv = self.conv(qkv, state, batch.routes, silu=True)
        return self.output(self.learn(qkv, alpha, beta, z, state, batch.routes))


class SigmoidDeltaNet(DeltaNet):
    """The same with the other gate (Qwen3.8-Flash-Next)."""

    sigmoid = True
