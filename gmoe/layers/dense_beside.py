"""Experts with GELU, perhaps beside a dense part of each block's own, and a norm behind both (Grok)."""

from torch import Tensor

from gmoe.layers.ffn import DenseFFN, ExpertDispatch, MoEFFN
from gmoe.layers.norm import RMSNorm
from gmoe.layers.router import Gating, topk
from gmoe.layers.weights import Weights


class DenseBeside(MoEFFN):
    """Where there are both, each counts by the root of a half: the norm sees half the squares, or twice its epsilon."""

    def __init__(self, w: Weights, dispatch: ExpertDispatch):
        route = topk(w, Gating.SOFTMAX, renormalize=True)
        dense = DenseFFN(w, activation="geglu") if w.has("ffn_up") else None
        super().__init__(w, route, dispatch, shared=dense, activation="geglu")
        norm = w.norm("layer_output_norm", "post_ffw_norm")
        self.after = norm if dense is None else RMSNorm(norm.weight, 2 * norm.eps, norm.bias, norm.on)

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, D] -> [T, D]."""
        return self.after(super().__call__(x))
