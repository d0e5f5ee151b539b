"""An MLP beside routed experts, each between two norms of its own; all of it, with the block, may have a scale."""

from torch import Tensor

from gmoe.experts.expert import Routing
from gmoe.layers.ffn import DenseFFN, ExpertDispatch, MoEFFN
from gmoe.layers.norm import RMSNorm, residual
from gmoe.layers.router import Gating, topk
from gmoe.layers.weights import Weights


def block_scale(w: Weights) -> float:
    """What a block's output is multiplied with as a whole, what it began with included."""
    scale = w.get("layer_output_scale", n=1)
    return 1.0 if scale is None else float(scale)


def last_norm(w: Weights) -> RMSNorm:
    """`post_ffw_norm`, with the block's scale in its weight."""
    norm = w.norm("post_ffw_norm")
    assert norm.weight is not None
    return RMSNorm(norm.weight * block_scale(w), norm.eps, norm.bias, norm.on)


class NormedDense:
    """A dense part between `ffn_norm` and the norm `after`."""

    def __init__(self, w: Weights, after: RMSNorm):
        self.before, self.dense, self.after = w.norm("ffn_norm"), DenseFFN(w, activation="geglu"), after

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, D] -> [T, D]."""
        return self.after(self.dense(self.before(x)))


class ParallelFFN(MoEFFN):
    """Softmax router, which norms x with scales of its own; experts, each with a scale; the MLP meanwhile."""

    def __init__(self, w: Weights, dispatch: ExpertDispatch):
        n_embd = w.hparams.n_embd
        super().__init__(w, topk(w, Gating.SOFTMAX, renormalize=True), dispatch, activation="geglu")
        self.router_norm = RMSNorm(w.vector("ffn_gate_inp", n_embd, ".scale") * n_embd**-0.5, w.eps, on=w.on)
        self.before, self.after = w.norm("pre_ffw_norm_2"), w.norm("post_ffw_norm_2")
        self.dense, self.last = NormedDense(w, w.norm("post_ffw_norm_1")), last_norm(w)

    def routing(self, x: Tensor) -> Routing:
        """Which experts x [T, D] asks for."""
        return self.route(self.gate_inp(self.router_norm(x)))

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, D] -> [T, D]."""
        its: list[Tensor] = []
        given, routing = self.before(x), self.routing(x)
        y = self.dispatch(self.layer, given, routing, self.activation, lambda: its.append(self.dense(x)))
        return self.last(residual(self.after(y), its[0]))
