"""Gated short convolutions: each channel of a token meets those of the few before it (LFM2)."""

from torch import Tensor

from gmoe.kernels import recurrent
from gmoe.kernels.ops import dequantize
from gmoe.kernels.recurrent import StateShape
from gmoe.layers.batch import Batch
from gmoe.layers.linear import beside
from gmoe.layers.recurrent_cache import RecurrentLayer
from gmoe.layers.weights import Weights


class ShortConv(RecurrentLayer):
    """Two gates of the same input: one before the convolution, one behind it."""

    def __init__(self, w: Weights):
        n, width = w.hparams.n_embd, w.hparams.n_shortconv
        if width < 2:
            w.refuse(f"{w.hparams.architecture}.shortconv.l_cache", f"{width}; at least 2 is supported")
        self.layer = w.layer
        self.state_shape = StateShape(width - 1, n)
        self.conv = recurrent.ShortConv(dequantize(w.quant("shortconv.conv", shape=(n, width)), on=w.on), on=w.on)
        maps = w.linear("shortconv.in_proj", n, 3 * n)
        self.inputs = beside(maps.rows(0, n), maps.rows(n, 2 * n), maps.rows(2 * n, 3 * n))
        self.output = w.linear("shortconv.out_proj", n, n)

    def __call__(self, x: Tensor, batch: Batch) -> Tensor:
        """x [T, D] -> [T, D]; the sequences' states are at its last rows then."""
        assert batch.states is not None
        before, after, x = self.inputs(x)
        state = batch.states.layers[self.layer]
        return self.output(self.conv(x, state, batch.routes, before=before, after=after))
