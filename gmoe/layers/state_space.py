"""Selective state spaces: each head forgets and takes in what a token's own step says (Mamba-2)."""

from itertools import pairwise

from torch import Tensor

from gmoe.kernels import recurrent
from gmoe.kernels.ops import dequantize
from gmoe.kernels.recurrent import ShortConv, SpaceRule, StateShape
from gmoe.layers.batch import Batch
from gmoe.layers.linear import beside
from gmoe.layers.recurrent_cache import RecurrentLayer
from gmoe.layers.weights import Weights


class Mamba2(RecurrentLayer):
    """`ssm_in` gives z, the input with its B and C, which a short convolution goes over, and the steps."""

    def __init__(self, w: Weights):
        hp, prefix = w.hparams, w.hparams.architecture + ".ssm."
        n_group, n_head, wide, dk = hp.ssm_n_group, hp.ssm_dt_rank, hp.ssm_d_inner, hp.ssm_d_state
        if not n_group or not n_head or n_head % n_group:
            w.refuse(prefix + "group_count", f"{n_group} groups of {n_head} heads")
        if not wide or wide % n_head or not dk:
            w.refuse(prefix + "inner_size", f"{wide} for {n_head} heads with states of {dk}")
        if hp.ssm_d_conv < 2:
            w.refuse(prefix + "conv_kernel", f"{hp.ssm_d_conv}; at least 2 is supported")
        self.layer = w.layer
        rows = wide + 2 * n_group * dk
        self.state_shape = StateShape(hp.ssm_d_conv - 1, rows, n_head, dk, wide // n_head)
        w.need("ssm_a", "ssm_d", "ssm_dt.bias")
        conv = dequantize(w.quant("ssm_conv1d", shape=(rows, hp.ssm_d_conv)), on=w.on)
        self.conv = ShortConv(conv, w.get("ssm_conv1d", ".bias", rows), w.on)
        a, d, dt_bias = w.get("ssm_a", "", n_head), w.get("ssm_d", "", n_head), w.get("ssm_dt", ".bias", n_head)
        assert a is not None and d is not None and dt_bias is not None
        norm = dequantize(w.quant("ssm_norm", shape=(n_group, wide // n_group)), on=w.on).flatten()
        rule = SpaceRule(n_group, n_head, a, dt_bias, d, norm, w.eps)
        self.learn = recurrent.StateSpace(rule, w.on)
        ends = 0, wide, wide + rows, wide + rows + n_head
        maps = w.linear("ssm_in", hp.n_embd, ends[3])
        self.inputs = beside(*(maps.rows(*part) for part in pairwise(ends)))
        self.output = w.linear("ssm_out", wide, hp.n_embd)

    def __call__(self, x: Tensor, batch: Batch) -> Tensor:
        """x [T, D] -> [T, D]; the sequences' states are at its last rows then."""
        assert batch.states is not None
        state = batch.states.layers[self.layer]
        z, xbc, dt = self.inputs(x)
        xbc = self.conv(xbc, state, batch.routes, silu=True)
        return self.output(self.learn(xbc, dt, z, state, batch.routes))
