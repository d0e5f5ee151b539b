"""Routers: from an expert's logits to `Routing`, step by step as llama.cpp's `build_moe_ffn`."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from gmoe.experts.expert import Routing
from gmoe.experts.policy import Floats, Ids, Scores
from gmoe.gguf.file import UnsupportedModel
from gmoe.gguf.hparams import Gating
from gmoe.kernels.ops import DeviceKernels, RouterRule, Score
from gmoe.kernels.ops import Router as Choice
from gmoe.layers.weights import Weights

__all__ = ["Gating", "Router", "Routing", "TopK", "stated", "topk"]

Router = Callable[[Tensor], Routing]  # logits [T, E] float32 -> Routing

SCORES = {
    Gating.SOFTMAX: Score.SOFTMAX,
    Gating.SIGMOID: Score.SIGMOID,
    Gating.SOFTMAX_WEIGHT: Score.SOFTMAX_WEIGHT,
    Gating.SQRT_SOFTPLUS: Score.SQRT_SOFTPLUS,
}


class TopK:
    """The router of a rule: the best by score."""

    def __init__(self, rule: RouterRule, on: DeviceKernels | None = None):
        self.rule, self._choose, self._on = rule, Choice(rule, on), on

    def __call__(self, logits: Tensor) -> Routing:
        """Logits [T, E] float32 -> who is asked for."""
        ids, weights = self._choose(logits)
        return Routing(ids, weights, partial(self._thought, logits))

    def among(self, kept: Sequence[int], used: int) -> Router:
        """What is left of it where there are no experts but `kept`, ascending, of which `used` are chosen.

        It takes and gives the numbers of all experts; groups must keep equally many.
        """
        few = torch.tensor(kept)
        bias, each = (None if v is None else v[few].contiguous() for v in (self.rule.bias, self.rule.each))
        left = TopK(self.rule._replace(experts=len(kept), chosen=used, bias=bias, each=each), self._on)

        def route(logits: Tensor) -> Routing:
            ids, weights = left(logits[:, few])[:2]
            return Routing(few[ids.long()].int(), weights)

        return route

    def _thought(self, logits: Tensor) -> Scores:
        selection, probabilities, weigh = self._choose.thoughts(logits)

        def given(ids: Ids) -> Floats:
            weights: Floats = weigh(torch.from_numpy(ids).long().to(logits.device)).cpu().numpy()
            return weights

        return Scores(selection.cpu().numpy(), probabilities.cpu().numpy(), given)


def topk(
    w: Weights,
    gating: Gating,
    *,
    renormalize: bool,
    bias: Tensor | None = None,
    scale: float = 1.0,
) -> TopK:
    """Choose `n_expert_used` by score; `bias` [E] changes who is chosen, never the weights; a `scale` of 0 is none.

    What the file says the results of each expert's `ffn_down_exps` are multiplied with goes to the weights.
    """
    hp = w.hparams
    each = w.get("ffn_down_exps", ".scale", hp.n_expert)
    groups, used = (hp.n_expert_groups, hp.n_group_used) if hp.n_expert_groups > 1 else (1, 1)
    if hp.n_expert % groups:
        raise UnsupportedModel(hp.file, f"{hp.architecture}.expert_group_count", "must divide expert_count")
    shape = SCORES[gating], hp.n_expert, hp.n_expert_used, groups, used
    rule = RouterRule(*shape, bias, renormalize, scale or 1.0, each)
    try:
        return TopK(rule, w.on)
    except ValueError as error:
        raise UnsupportedModel(hp.file, f"{hp.architecture}.expert_count", str(error)) from None


def stated(w: Weights, gating: Gating, bias: str = ".bias") -> TopK:
    """The router that the file states: scaling, renormalising, groups, and a selection bias named by its suffix.

    `gating` is the architecture's own, where the file states none.
    """
    hp = w.hparams
    selection, scale = w.get("exp_probs_b", bias, hp.n_expert), hp.expert_weights_scale
    return topk(w, hp.gating_or(gating), renormalize=hp.expert_weights_norm, bias=selection, scale=scale)
