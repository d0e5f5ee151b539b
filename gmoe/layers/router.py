"""Routers: from an expert's logits to `Routing`, step by step as llama.cpp's `build_moe_ffn`."""

from collections.abc import Callable

import torch
from torch import Tensor

from gmoe.experts.expert import Routing
from gmoe.experts.policy import Scores
from gmoe.gguf.file import UnsupportedModel
from gmoe.gguf.hparams import Gating, Hparams

__all__ = ["Gating", "Router", "Routing", "best_groups", "probabilities", "topk"]

Router = Callable[[Tensor], Routing]  # logits [T, E] float32 -> Routing

SMALLEST_SUM = 6.103515625e-5  # llama.cpp's floor under the sum of the chosen weights


def probabilities(logits: Tensor, gating: Gating) -> Tensor:
    """Scores [T, E] by the file's gating function; for SOFTMAX_WEIGHT they stay logits until experts are chosen."""
    if gating is Gating.SOFTMAX:
        return torch.softmax(logits, -1)
    if gating is Gating.SIGMOID:
        return torch.sigmoid(logits)
    if gating is Gating.SOFTMAX_WEIGHT:
        return logits
    if gating is Gating.SQRT_SOFTPLUS:
        return torch.nn.functional.softplus(logits).sqrt()
    raise ValueError(f"no gating function {gating!r}")


def topk(hp: Hparams, gating: Gating, *, renormalize: bool, bias: Tensor | None = None) -> Router:
    """Choose `n_expert_used` by score; `bias` [E] changes who is chosen, never the weights."""
    if hp.n_expert_groups > 1 and hp.n_expert % hp.n_expert_groups:
        raise UnsupportedModel(hp.file, f"{hp.architecture}.expert_group_count", "must divide expert_count")

    def route(logits: Tensor) -> Routing:
        scores = probabilities(logits, gating)  # [T, E]
        selection = scores if bias is None else scores + bias
        if hp.n_expert_groups > 1:
            selection = best_groups(selection, hp.n_expert_groups, hp.n_group_used)
        ids = torch.topk(selection, hp.n_expert_used, -1).indices
        plain = bias is None and hp.n_expert_groups <= 1

        def thought() -> Scores:
            return Scores(
                (logits if plain else selection).numpy(),
                (torch.softmax(logits, -1) if gating is Gating.SOFTMAX_WEIGHT else scores).numpy(),
                lambda ids: weigh(scores, torch.from_numpy(ids).long()).numpy(),
            )

        return Routing(ids.int(), weigh(scores, ids), thought)

    def weigh(scores: Tensor, ids: Tensor) -> Tensor:
        """The weights of ids [T, k]; -1, which only policies say, is nobody."""
        weights = scores.gather(-1, ids.clamp(min=0))  # [T, k]
        nobody = ids < 0
        if gating is Gating.SOFTMAX_WEIGHT:
            weights = torch.softmax(weights.masked_fill(nobody, float("-inf")), -1).nan_to_num(0.0)
        else:
            weights = weights.masked_fill(nobody, 0.0)
        if renormalize:
            weights = weights / weights.sum(-1, keepdim=True).clamp(min=SMALLEST_SUM)
        if hp.expert_weights_scale not in (0.0, 1.0):
            weights = weights * hp.expert_weights_scale
        return weights

    return route


def best_groups(selection: Tensor, n_groups: int, n_used: int) -> Tensor:
    """Scores [T, E] with -inf outside the `n_used` groups whose two best experts sum highest."""
    grouped = selection.view(len(selection), n_groups, -1)  # [T, groups, E / groups]
    merit = grouped.topk(min(2, grouped.shape[-1]), -1).values.sum(-1)
    kept = torch.zeros_like(merit, dtype=torch.bool).scatter_(-1, merit.topk(n_used, -1).indices, True)
    return grouped.masked_fill(~kept[..., None], float("-inf")).view(selection.shape)
