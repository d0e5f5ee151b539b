"""Small experts, one for each chunk of routed experts, that read what the routed ones gave (GroveMoE)."""

import numpy as np
from torch import Tensor

from gmoe.experts.dispatch import ExpertDispatch
from gmoe.kernels.formats import QuantTensor
from gmoe.kernels.ops import ExpertMatrix, ExpertTable, Router, residual
from gmoe.kernels.reference import as_tensor
from gmoe.layers.ffn import MoEFFN
from gmoe.layers.router import TopK
from gmoe.layers.weights import Weights

CHUNK_KEYS = frozenset({"expert_chunk_feed_forward_length", "experts_per_group", "expert_group_scale"})


class ChunkedFFN(MoEFFN):
    """y of the routed experts, + scale * the sum of weight * chunk(y) over the chunks that these belong to.

    A chunk counts once for each chosen expert in it. Chunks are never fetched: they are weights like any others.
    """

    def __init__(self, w: Weights, route: TopK, dispatch: ExpertDispatch):
        super().__init__(w, route, dispatch)
        hp = w.hparams
        self.scale, size, used = hp.chunk_scale, hp.n_chunk_expert, hp.n_expert_used
        if not size or hp.n_expert % size:
            w.refuse(f"{hp.architecture}.experts_per_group", f"{size}; must divide expert_count")
        n = hp.n_expert // size
        if used > n:
            w.refuse(f"{hp.architecture}.expert_used_count", f"{used}; at most as many as chunks, {n}, are supported")
        # Weighed by the probabilities of the experts that have the chunks' numbers: so does llama.cpp.
        self.choose = Router(route.rule._replace(each=None, chunk=size), w.on)
        up = n, hp.n_ff_chunk or hp.n_head_k, hp.n_embd
        shapes = {"gate": up, "up": up, "down": (n, up[2], up[1])}
        stacks = (w.stored(f"ffn_{role}_chexps", shape=shape) for role, shape in shapes.items())
        self.chunks = dispatch.kept(ExpertTable(*map(_matrix, stacks)))

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, D] -> [T, D]."""
        logits = self.gate_inp(x)
        routing = self.route(logits)
        ids, weights = self.choose(logits)
        y = self.sum(x, routing, x)
        return residual(y, self.chunks(y, ids, weights, self.activation), self.scale)


def _matrix(stack: QuantTensor) -> ExpertMatrix:
    """Experts [n, rows, cols] where they lie in the file."""
    n, rows, cols = stack.shape
    data = as_tensor(stack.data).view(n, rows, -1)
    address = data.data_ptr() + np.arange(n, dtype=np.int64) * data[0].nbytes
    return ExpertMatrix(stack.format, rows, cols, address, None, stack.data, lambda expert: data[expert].numpy())
