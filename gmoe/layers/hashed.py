"""Experts that a table names for each token, known before anything is computed (the first blocks of DeepSeek-V4)."""

import torch
from torch import Tensor

from gmoe.experts.expert import Routing
from gmoe.kernels.ops import gated
from gmoe.kernels.reference import as_tensor
from gmoe.kernels.reference_step import weigh
from gmoe.layers.batch import Batch
from gmoe.layers.ffn import DenseFFN, ExpertDispatch, MoEFFN
from gmoe.layers.router import TopK
from gmoe.layers.weights import Weights


class HashedFFN(MoEFFN):
    """Experts by token id, weighed by the square roots of the router's softplus, and a shared one beside them."""

    def __init__(
        self,
        w: Weights,
        route: TopK,
        dispatch: ExpertDispatch,
        n_vocab: int,
        *,
        shared: DenseFFN,
        activation: str = "swiglu",
    ):
        super().__init__(w, route, dispatch, shared=shared, activation=activation)
        self.rule, name = route.rule, f"{w.prefix}ffn_gate_tid2eid.weight"
        table = w.quant("ffn_gate_tid2eid", shape=(n_vocab, self.rule.chosen))
        if table.format.name != "I32":
            w.refuse(name, f"is {table.format.name}; only I32 is supported")
        # It stays in the file: a token reads a row.
        self.experts = as_tensor(table.data).view(torch.int32).view(n_vocab, -1)
        if not 0 <= int(self.experts.min()) <= int(self.experts.max()) < self.rule.experts:
            w.refuse(name, f"names experts that are none of the {self.rule.experts}")

    def __call__(self, x: Tensor, batch: Batch | None = None) -> Tensor:
        """x [T, D] -> [T, D]."""
        assert batch is not None
        logits, ids = self.gate_inp(x), self.experts[batch.token_ids]
        scores = gated(logits, torch.ones_like(logits), curve="softplus").sqrt()
        return self.sum(x, Routing(ids, weigh(scores, ids.long(), self.rule)), x)
