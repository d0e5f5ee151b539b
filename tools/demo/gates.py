"""What the gates say, asked of the network itself: about the next layer, and about how much an expert counts."""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tools.demo.model import Model, rope


@torch.no_grad()
def gate_inputs(model: Model, ids: Tensor) -> list[Tensor]:
    """ids [S, T] -> of every layer what its gate sees, [S T, D]."""
    x = model.token_embd(ids)
    cos, sin = rope(model.shape, ids.shape[1], ids.device)
    seen = []
    for block in model.blk:
        attended = x + block.attention(block.attn_norm(x), cos, sin)
        seen.append(block.ffn_norm(attended).flatten(0, 1))
        x, _ = block(x, cos, sin)
    return seen


@torch.no_grad()
def look_ahead(
    model: Model, windows: Iterable[NDArray[np.int64]], distances: int = 3
) -> dict[int, tuple[float, float]]:
    """Distance d -> share of all, and of the first, experts of a layer that its gate names d layers earlier.

    The gate of layer l + d is applied to what layer l's gate sees (HOBBIT); both choose k.
    """
    found: dict[int, list[tuple[float, float]]] = {d: [] for d in range(1, min(distances + 1, model.shape.n_layer))}
    for window in windows:
        seen = gate_inputs(model, torch.from_numpy(window)[None])
        routes = [block.route(x)[0] for block, x in zip(model.blk, seen, strict=True)]  # [T, k], the best first
        for d, shares in found.items():
            for layer in range(len(seen) - d):
                guess = model.blk[layer + d].route(seen[layer])[0]
                hit = (routes[layer + d][:, :, None] == guess[:, None, :]).any(-1).float()
                shares.append((hit.mean().item(), hit[:, 0].mean().item()))
    return {d: (float(np.mean([a for a, _ in s])), float(np.mean([b for _, b in s]))) for d, s in found.items()}


@torch.no_grad()
def gate_against_output(model: Model, windows: Iterable[NDArray[np.int64]]) -> float:
    """Correlation of an expert's gate weight with the length of what it adds, gate included; mean over layers."""
    weights_, lengths = [[] for _ in model.blk], [[] for _ in model.blk]
    for window in windows:
        for n, (block, x) in enumerate(zip(model.blk, gate_inputs(model, torch.from_numpy(window)[None]), strict=True)):
            ids, weights, _ = block.route(x)
            gate, up, down = (m.weight for m in (block.ffn_gate_exps, block.ffn_up_exps, block.ffn_down_exps))
            for e in range(model.shape.n_expert):
                token, slot = (ids == e).nonzero(as_tuple=True)
                out = (F.silu(x[token] @ gate[e].T) * (x[token] @ up[e].T)) @ down[e].T
                weights_[n].append(weights[token, slot])
                lengths[n].append(out.norm(dim=-1) * weights[token, slot])
    pairs = [torch.stack((torch.cat(a), torch.cat(b))) for a, b in zip(weights_, lengths, strict=True)]
    return float(np.mean([torch.corrcoef(pair)[0, 1].item() for pair in pairs]))


@torch.no_grad()
def shares_by_rank(model: Model, windows: Iterable[NDArray[np.int64]]) -> NDArray[np.float64]:
    """Mean renormalised weight of the first, second, ... chosen expert, [k]."""
    weights = [
        block.route(x)[1].numpy()
        for window in windows
        for block, x in zip(model.blk, gate_inputs(model, torch.from_numpy(window)[None]), strict=True)
    ]
    return np.concatenate(weights).mean(0).astype(np.float64)
