"""The model's costly pieces with gradients written out: a third of the passes over memory.

Products of one size are in bfloat16 where the CPU multiplies it faster. Those of the experts stay in float32: a product
of a new size is compiled anew for bfloat16, and hardly two steps give an expert the same number of rows.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 512  # rows of logits alive at once: they stay in the cache


def product_type(given: torch.dtype = torch.float32) -> torch.dtype:
    """What a CPU multiplies in the stead of `given` because it does so faster."""
    fast = given == torch.float32 and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else given


class Normalize(torch.autograd.Function):
    """x [..., D] / its root mean square * weight [D]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x = x.to(weight.dtype)
        inverse = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        normal = x * inverse
        ctx.save_for_backward(normal, inverse, weight)
        return normal * weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        normal, inverse, weight = ctx.saved_tensors
        product = grads[0] * normal
        for_weight = product.flatten(0, -2).sum(0)
        mean = (product @ weight)[..., None].div_(weight.numel())
        return (grads[0] * weight).addcmul_(normal, mean, value=-1).mul_(inverse), for_weight, None


class Mixture(torch.autograd.Function):
    """x [N, D], ids [N, k], weights [N, k], gate and up [E, ff, D], down [E, D, ff] -> [N, D].

    The rows of one expert are multiplied together; the gate's weight is applied to the neurons, before `down`.
    """

    @staticmethod
    @torch.autocast("cpu", enabled=False)
    def forward(ctx: Any, x: Tensor, ids: Tensor, weights: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        n_expert, n_ff, width = gate.shape
        k = ids.shape[1]
        chosen, order = ids.flatten().sort(stable=True)  # [N k]
        ends = torch.bincount(chosen, minlength=n_expert).cumsum(0).tolist()
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order))
        rows = x.index_select(0, order // k)
        both = torch.cat((gate, up), 1)  # [E, 2 ff, D]
        scale = weights.flatten()[order, None]
        hidden = x.new_empty(len(order), 2 * n_ff)
        for e, (first, end) in enumerate(zip([0, *ends], ends, strict=False)):
            torch.mm(rows[first:end], both[e].T, out=hidden[first:end])
        active = F.silu(hidden[:, :n_ff]) * hidden[:, n_ff:]  # [N k, ff]
        weighted = active * scale
        out = x.new_empty(len(order), width)
        for e, (first, end) in enumerate(zip([0, *ends], ends, strict=False)):
            torch.mm(weighted[first:end], down[e].T, out=out[first:end])
        ctx.save_for_backward(rows, hidden, active, weighted, scale, both, down, order, back)
        ctx.ends, ctx.k = ends, k
        return out.index_select(0, back).view(-1, k, width).sum(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, hidden, active, weighted, scale, both, down, order, back = ctx.saved_tensors
        ends, k, n_ff = ctx.ends, ctx.k, active.shape[1]
        spans = list(enumerate(zip([0, *ends], ends, strict=False)))
        above = grads[0].index_select(0, order // k)  # [N k, D]
        for_down, for_both = torch.empty_like(down), torch.empty_like(both)
        for_weighted = torch.empty_like(weighted)
        for e, (first, end) in spans:
            torch.mm(above[first:end], down[e], out=for_weighted[first:end])
            torch.mm(above[first:end].T, weighted[first:end], out=for_down[e])
        for_scale = torch.linalg.vecdot(for_weighted, active)
        for_active = for_weighted.mul_(scale)
        gate, up = hidden[:, :n_ff], hidden[:, n_ff:]
        sigmoid = gate.sigmoid()
        swish = gate * sigmoid
        for_hidden = torch.empty_like(hidden)
        torch.mul(for_active, swish, out=for_hidden[:, n_ff:])
        torch.mul(for_active.mul_(up), sigmoid + swish * (1 - sigmoid), out=for_hidden[:, :n_ff])
        for_rows = torch.empty_like(rows)
        for e, (first, end) in spans:
            torch.mm(for_hidden[first:end], both[e], out=for_rows[first:end])
            torch.mm(for_hidden[first:end].T, rows[first:end], out=for_both[e])
        for_x = for_rows.index_select(0, back).view(-1, k, rows.shape[1]).sum(1)
        return for_x, None, for_scale[back].view(-1, k), for_both[:, :n_ff], for_both[:, n_ff:], for_down


class TokenLoss(torch.autograd.Function):
    """x [N, D], head [n_vocab, D], targets [N] -> mean cross entropy; the logits never exist all at once."""

    @staticmethod
    @torch.autocast("cpu", enabled=False)
    def forward(ctx: Any, x: Tensor, head: Tensor, targets: Tensor) -> Tensor:
        for_x, for_head, total = torch.empty_like(x), torch.zeros_like(head), x.new_zeros(())
        kind = product_type(x.dtype)
        x, head = x.to(kind), head.to(kind)
        for first in range(0, len(x), CHUNK):
            some, target = x[first : first + CHUNK], targets[first : first + CHUNK, None]
            share = torch.softmax(some @ head.T, -1, dtype=for_x.dtype)
            total -= share.gather(1, target).clamp_min_(1e-30).log_().sum()
            share.scatter_add_(1, target, share.new_full(target.shape, -1.0))
            share = share.to(kind)
            for_x[first : first + CHUNK] = share @ head
            for_head += share.T @ some
        ctx.save_for_backward(for_x, for_head)
        ctx.n = len(x)
        return total / ctx.n

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        for_x, for_head = ctx.saved_tensors
        scale = grads[0] / ctx.n
        return for_x * scale, for_head * scale, None
