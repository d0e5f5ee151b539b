"""Selective state spaces whose channels each have a step and rates of forgetting of their own (Mamba-1)."""

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import pad

from gmoe.kernels.ops import activate, blended, dequantize, gated
from gmoe.kernels.recurrent import ShortConv, StateLayer, StateShape
from gmoe.layers.batch import Batch
from gmoe.layers.linear import beside
from gmoe.layers.recurrent_cache import RecurrentLayer
from gmoe.layers.weights import Weights

MAMBA_KEYS = frozenset(f"ssm.{key}" for key in ("conv_kernel", "inner_size", "state_size", "time_step_rank"))
AT_ONCE = 1 << 15  # numbers that torch computes alone; its threads, which come for more, would be in the way


class NormedMamba(RecurrentLayer):
    """`ssm_in` gives the input of a short convolution and z; what `ssm_x` makes of the first is normed (Jamba)."""

    def __init__(self, w: Weights):
        hp, prefix = w.hparams, w.hparams.architecture + ".ssm."
        wide, dk, rank = hp.ssm_d_inner, hp.ssm_d_state, hp.ssm_dt_rank
        for name, value in (("inner_size", wide), ("state_size", dk), ("time_step_rank", rank)):
            if not 0 < value <= AT_ONCE:
                w.refuse(prefix + name, f"{value} is outside 1 to {AT_ONCE}")
        if hp.ssm_d_conv < 2:
            w.refuse(prefix + "conv_kernel", f"{hp.ssm_d_conv}; at least 2 is supported")
        if w.on is not None:
            w.refuse("general.architecture", "runs on the CPU, not on a device yet; say --device cpu")
        self.layer = w.layer
        self.state_shape = StateShape(hp.ssm_d_conv - 1, wide, 1, dk, wide)
        w.need("ssm_dt.bias")
        conv, a = w.quant("ssm_conv1d", shape=(wide, hp.ssm_d_conv)), w.quant("ssm_a", "", (wide, dk))
        self.conv = ShortConv(dequantize(conv), w.vector("ssm_conv1d", wide, ".bias"))
        self.a, self.d = dequantize(a).t().contiguous(), w.vector("ssm_d", wide, "")
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
        return self.output(activate("swiglu", z, self.learn(x, self.steps(dt), b, c, state, batch)))

    def learn(self, x: Tensor, dt: Tensor, b: Tensor, c: Tensor, state: StateLayer, batch: Batch) -> Tensor:
        """S = exp(step * a) S + b (step * x)'; y = S'c + d * x, with step = softplus(dt): x and dt [T, C] -> [T, C]."""
        assert batch.slots is not None
        y, band = torch.empty_like(x), AT_ONCE // len(self.a)
        steps = zip(pairwise(batch.begins), *batch.slots.tolist(), strict=True)
        for (begin, end), source, target, kept, after in steps:
            for first in range(0, x.shape[1], band):
                part = slice(first, first + band)
                slots, a, d = state.matrices[:, 0, :, part], self.a[:, part], self.d[part]  # [n, dk, band]
                past = slots[source] if source >= 0 else torch.zeros_like(a)
                most = AT_ONCE // a.numel()
                for at in range(begin, end, most):
                    some = slice(at, min(end, at + most))
                    given = x[some, part]
                    step = gated(dt[some, part], torch.ones(given.shape), curve="softplus")
                    matrices = (step[:, None] * a).exp_()
                    for matrix, new in zip(matrices, b[some, :, None] * (step * given)[:, None], strict=True):
                        past = matrix.mul_(past).add_(new)
                    weights = pad(c[some], (1, 0), value=1.0)[:, None]  # of d * x, then of a matrix' rows
                    y[some, part] = blended(matrices, given * d, weights)[:, 0]
                    if kept >= 0 and at < begin + after <= some.stop:
                        slots[kept] = matrices[begin + after - at - 1]
                slots[target] = past
        return y
