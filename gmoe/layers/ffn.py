"""Feed-forward blocks: dense, and the routed mixture with its shared expert."""

import torch
from torch import Tensor

from gmoe.experts.dispatch import ExpertDispatch
from gmoe.experts.expert import Hidden, Routing
from gmoe.gguf.layout import LayerExperts
from gmoe.kernels.formats import FORMATS, QuantTensor
from gmoe.kernels.ops import activate, dequantize, gated, residual, situ, under, within
from gmoe.layers.linear import QuantLinear, beside
from gmoe.layers.router import Gating, Router, stated
from gmoe.layers.weights import Weights

UNGATED = ("relu2",)  # activations of one matrix
AT_ONCE = 128  # rows of a prompt whose gates and ups stand in memory together; the kernels take no more at a time

__all__ = [
    "DenseFFN",
    "ExpertDispatch",
    "GatedFFN",
    "Hidden",
    "MoEFFN",
    "UngatedFFN",
    "led_by_dense",
    "situ",
    "under",
    "within",
]


class DenseFFN:
    """gate, up, activation, down; `suffix="_shexp"` makes it the shared expert."""

    def __init__(self, w: Weights, suffix: str = "", activation: str = "swiglu"):
        self.activation, self.on = activation, w.on
        n_embd = w.hparams.n_embd
        gate = w.linear("ffn_gate" + suffix, n_embd)
        n_ff = gate.weight.shape[0]
        self.gate_up = beside(gate, w.linear("ffn_up" + suffix, n_embd, n_ff))
        self.down = w.linear("ffn_down" + suffix, n_ff, n_embd)

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, D] -> [T, D]."""
        if len(x) <= AT_ONCE or not self.gate_up.compiled:
            return self._rows(x)
        y = x.new_empty(len(x), self.down.weight.shape[0])
        for at in range(0, len(x), AT_ONCE):
            self._rows(x[at : at + AT_ONCE], y[at : at + AT_ONCE])
        return y

    def _rows(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        return self.down(activate(self.activation, *self.gate_up(x), self.on), out)


class UngatedFFN(DenseFFN):
    """up, activation, down: there is no gate (Nemotron)."""

    def __init__(self, w: Weights, suffix: str = "", activation: str = "relu2"):
        self.activation, self.on = activation, w.on
        n_embd = w.hparams.n_embd
        up = w.linear("ffn_up" + suffix, n_embd)
        self.gate_up = beside(up)
        self.down = w.linear("ffn_down" + suffix, up.weight.shape[0], n_embd)

    def _rows(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        (up,) = self.gate_up(x)
        return self.down(activate(self.activation, None, up, self.on), out)


class GatedFFN:
    """A shared expert behind a scalar sigmoid gate (Qwen2-MoE)."""

    def __init__(self, w: Weights):
        self.expert = DenseFFN(w, "_shexp")
        self.gate = w.linear("ffn_gate_inp_shexp", w.hparams.n_embd, 1)

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, D] -> [T, D]."""
        return gated(self.gate(x), self.expert(x), self.gate.on)


class MoEFFN:
    """Router, routed experts, shared expert: y = sum of weight * expert(x), + shared(x)."""

    def __init__(
        self,
        w: Weights,
        route: Router,
        dispatch: ExpertDispatch,
        *,
        shared: DenseFFN | GatedFFN | None = None,
        activation: str = "swiglu",
        width: int = 0,  # of what experts read and give, if not the model's
    ):
        self.layer = w.layer
        n_expert, n_embd = w.hparams.n_expert, w.hparams.n_embd
        weight = w.matrix("ffn_gate_inp", n_embd, n_expert)
        if weight.format.name != "F32":  # exact: the choice of experts hangs on it
            gate_inp = dequantize(weight, on=w.on)
            weight = QuantTensor(gate_inp.view(torch.uint8), FORMATS["F32"], tuple(gate_inp.shape))
        self.gate_inp = QuantLinear(weight, w.get("ffn_gate_inp", ".bias", n_expert), w.activations, w.on)
        experts = dispatch.store.layout.layers.get(w.layer)
        gates = () if activation in UNGATED else ("ffn_gate_exps.weight",)
        if experts is None or (experts.gate is None) == bool(gates):
            w.need("ffn_up_exps.weight", *gates)
            w.refuse(f"{w.prefix}ffn_gate_exps.weight", f"architecture {w.hparams.architecture} has no gates")
        elif experts.up.cols != (width or n_embd):
            why = f"has {experts.up.cols} inputs, the rest of the file asks for {width or n_embd}"
            w.refuse(f"{w.prefix}ffn_up_exps.weight", why)
        else:
            _check_scales(w, experts)
        self.route = route
        self.dispatch = dispatch
        self.shared = shared
        self.activation = activation

    def routing(self, x: Tensor) -> Routing:
        """Which experts x [T, D] asks for."""
        return self.route(self.gate_inp(x))

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, D] -> [T, D]."""
        return self.sum(x, self.routing(x), x)

    def sum(self, given: Tensor, routing: Routing, x: Tensor) -> Tensor:
        """The routed experts of what they are given [T, D], and of x, meanwhile, the shared one."""
        shared = self.shared
        if shared is None:
            return self.behind(self.dispatch(self.layer, given, routing, self.activation))
        its: list[Tensor] = []
        y = self.dispatch(self.layer, given, routing, self.activation, lambda: its.append(shared(x)))
        return residual(self.behind(y), its[0])

    def behind(self, y: Tensor) -> Tensor:
        """What the routed experts gave together [T, D], before it meets the shared one."""
        return y


def _check_scales(w: Weights, experts: LayerExperts) -> None:
    if experts.down.bias is not None and w.get("ffn_down_exps", ".scale") is not None:
        w.refuse(f"{w.prefix}ffn_down_exps.scale", "supported where ffn_down_exps has no bias")
    for name, stack in (("gate", experts.gate), ("up", experts.up)):
        if w.on is not None and stack is not None and stack.scale is not None:
            w.refuse(f"{w.prefix}ffn_{name}_exps.scale", "supported on the CPU, not on a device yet; say --device cpu")


def led_by_dense(
    w: Weights, gating: Gating, dispatch: ExpertDispatch, routed: type[MoEFFN] = MoEFFN
) -> DenseFFN | MoEFFN:
    """DeepSeek's plan, which many follow: the first blocks dense, then routed experts beside shared ones.

    `gating` is the architecture's own; the router is else as the file states.
    """
    hp = w.hparams
    if w.layer < hp.n_layer_dense_lead:
        return DenseFFN(w)
    return routed(w, stated(w, gating), dispatch, shared=DenseFFN(w, "_shexp") if hp.n_expert_shared else None)
