"""Selective state spaces whose channels each have a step and rates of forgetting of their own (Mamba-1)."""

from itertools import pairwise

from torch import Tensor

from gmoe.kernels.ops import dequantize
from gmoe.kernels.recurrent import ChannelRule, ChannelSpace, ShortConv, StateShape
from gmoe.layers.batch import Batch
from gmoe.layers.linear import beside
from gmoe.layers.recurrent_cache import RecurrentLayer
from gmoe.layers.weights import Weights

MAMBA_KEYS = frozenset(f"ssm.{key}" for key in ("conv_kernel", "inner_size", "state_size", "time_step_rank"))


class NormedMamba(RecurrentLayer):
    """`ssm_in` gives the input of a short convolution and z; what `ssm_x` makes of the first is normed (Jamba)."""

    def __init__(self, w: Weights):
        hp, prefix = w.hparams, w.hparams.architecture + ".ssm."
        wide, dk, rank = hp.ssm_d_inner, hp.ssm_d_state, hp.ssm_dt_rank
        for name, value in (("inner_size", wide), ("state_size", dk), ("time_step_rank", rank)):
            if value < 1:
                w.refuse(prefix + name, f"{value}; at least 1 is supported")
        if hp.ssm_d_conv < 2:
            w.refuse(prefix + "conv_kernel", f"{hp.ssm_d_conv}; at least 2 is supported")
        if w.on is not None:
            w.refuse("general.architecture", "runs on the CPU, not on a device yet; say --device cpu")
        self.layer = w.layer
        self.state_shape = StateShape(hp.ssm_d_conv - 1, wide, -(-wide // 16), dk, 16)
        w.need("ssm_dt.bias")
        conv, a = w.quant("ssm_conv1d", shape=(wide, hp.ssm_d_conv)), w.quant("ssm_a", "", (wide, dk))
        self.conv = ShortConv(dequantize(conv), w.vector("ssm_conv1d", wide, ".bias"))
        self.learn = ChannelSpace(ChannelRule(dequantize(a), w.vector("ssm_d", wide, "")))
        maps, given = w.linear("ssm_in", hp.n_embd, 2 * wide), w.linear("ssm_x", wide, rank + 2 * dk)
        self.inputs = beside(maps.rows(0, wide), maps.rows(wide, 2 * wide))
        self.given = beside(*(given.rows(*ends) for ends in pairwise((0, rank, rank + dk, rank + 2 * dk))))
        self.norms = [w.norm(f"ssm_{part}_norm", n=n) for part, n in (("dt", rank), ("b", dk), ("c", dk))]
        self.steps, self.output = w.linear("ssm_dt", rank, wide), w.linear("ssm_out", wide, hp.n_embd)

    def __call__(self, x: Tensor, batch: Batch) -> Tensor:
        """x [T, D] -> [T, D]; the sequences' states are at its last rows then."""
        assert batch.states is not None
        state = batch.states.layers[self.layer]
        x, z = self.inputs(x)
        x = self.conv(x, state, batch.routes, silu=True)
        dt, b, c = (norm(part) for norm, part in zip(self.norms, self.given(x), strict=True))
        return self.output(self.learn(x, self.steps(dt), b, c, z, state, batch.routes))
