"""An index: to which of many rows, or of pools of them, a query attends (DeepSeek-V4, GLM-5.3-Flash)."""

import numpy as np
import torch
from torch import Tensor

from gmoe.kernels.formats import FORMATS, QuantTensor
from gmoe.kernels.ops import combine, lay, matmul
from gmoe.layers.weights import Weights

QUERIES, SCORES = 32, 1 << 24  # at most so many queries' stand in memory together, and so many, of one query at least


class Scores:
    """A row's score is a weighted sum over heads of what is positive of a head's query times the row's index key."""

    def __init__(self, w: Weights, most: int):
        hp = w.hparams
        self.n_head, self.width, self.most = hp.n_index_head, hp.n_index, most
        if not self.n_head or not self.most or self.width < (hp.rope_dimension_count or 0):
            why = "needed with key_length, as wide as rope.dimension_count at least, and top_k"
            w.refuse(f"{hp.architecture}.attention.indexer.head_count", why)

    def best(self, q: Tensor, weights: Tensor, keys: Tensor, counts: Tensor) -> Tensor:
        """Of queries [T, H, d] with weights [T, H], among the first `counts` [T] of keys [n, d]: [T, most], ascending.

        Where there are no more than `most`, they are all among them, before others.
        """
        table = QuantTensor(keys.view(torch.uint8), FORMATS["F32"], tuple(keys.shape))
        heads = torch.arange(self.n_head, dtype=torch.int32)
        best = []
        step = max(1, min(QUERIES, SCORES // (self.n_head * len(keys))))
        for at in range(0, len(q), step):
            some = slice(at, at + step)
            products = matmul(lay(q[some]).flatten(0, 1), table, activations="float")
            np.maximum(products.numpy(), 0.0, out=products.numpy())  # torch's threads would be in the way
            its = weights[some].contiguous()
            scores = combine(products.view(*its.shape, -1), its, heads.repeat(len(its), 1))
            scores.masked_fill_(torch.arange(len(keys)) >= counts[some, None], -torch.inf)
            order = scores.argsort(dim=-1, descending=True, stable=True)[:, : self.most]
            best.append(order.sort(-1).values)
        return torch.cat(best)


class RowIndex(Scores):
    """Its queries come from those of latent attention, and a map of the block's input weighs their heads."""

    def __init__(self, w: Weights, most: int):
        super().__init__(w, most)
        self.queries = w.linear("indexer.attn_q_b", w.hparams.q_lora_rank, self.n_head * self.width)
        self.weights = w.linear("indexer.proj", w.hparams.n_embd, self.n_head)
