"""Routed experts in a space of their own, narrower than the model's (Kimi-K3)."""

from torch import Tensor

from gmoe.layers.ffn import DenseFFN, ExpertDispatch, MoEFFN
from gmoe.layers.router import Router
from gmoe.layers.weights import Weights


class LatentFFN(MoEFFN):
    """`ffn_routed_down` leads to the experts and, behind a norm where the file has it, `ffn_routed_up` back.

    The router and the shared expert read x itself.
    """

    def __init__(
        self, w: Weights, route: Router, dispatch: ExpertDispatch, *, shared: DenseFFN | None, activation: str
    ):
        n_embd, width = w.hparams.n_embd, w.hparams.n_latent
        super().__init__(w, route, dispatch, shared=shared, activation=activation, width=width)
        self.down, self.up = w.linear("ffn_routed_down", n_embd, width), w.linear("ffn_routed_up", width, n_embd)
        self.norm = w.norm("ffn_routed_norm", n=width) if w.has("ffn_routed_norm") else None

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, D] -> [T, D]."""
        return self.sum(self.down(x), self.routing(x)._replace(seen=x), x)

    def behind(self, y: Tensor) -> Tensor:
        """What the routed experts gave together [T, width] -> [T, D]."""
        return self.up(y if self.norm is None else self.norm(y))
