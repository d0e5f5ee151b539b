"""The router's choice, one launch: logits -> ids and weights of the chosen experts; a program serves a token."""

import torch
import triton
import triton.language as tl
from gmoe.kernels.reference_step import SMALLEST_SUM as _SMALLEST_SUM
from gmoe.kernels.reference_step import RouterRule, Score
from torch import Tensor

SMALLEST_SUM = tl.constexpr(_SMALLEST_SUM)
SOFTMAX, SIGMOID, SOFTMAX_WEIGHT = (tl.constexpr(int(s)) for s in (Score.SOFTMAX, Score.SIGMOID, Score.SOFTMAX_WEIGHT))
TAKEN = tl.constexpr(-(1 << 62))  # below what any number's place in the order is
EXACTLY = {"enable_fp_fusion": False}


@triton.jit
def _softmax(x):
    shares = tl.exp(x - tl.max(x, 0))
    return tl.div_rn(shares, tl.sum(shares, 0) + tl.zeros_like(shares))


@triton.jit
def _score(x, SCORE: tl.constexpr):
    if SCORE == SOFTMAX:
        return _softmax(x)
    elif SCORE == SIGMOID:
        return tl.div_rn(tl.full(x.shape, 1.0, tl.float32), 1.0 + tl.exp(-x))
    elif SCORE == SOFTMAX_WEIGHT:
        return x
    else:
        power = tl.exp(tl.minimum(x, 20.0))
        above = 1.0 + power
        rounded = above - 1.0  # log(1 + p) keeps its digits as log(above) * p / rounded
        log = tl.where(rounded > 0.0, tl.log(above) * (power / tl.where(rounded > 0.0, rounded, 1.0)), power)
        return tl.sqrt_rn(tl.where(x <= 20.0, log, x))


@triton.jit
def _order(x, i, inside, WIDTH: tl.constexpr):
    """int64 [WIDTH] that rise as x does, of equals the smaller i higher, NaN highest, as torch sorts; all different."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)  # one zero
    place = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    place = tl.where(x == x, place, 0x7FFFFFFF).to(tl.int64)
    return tl.where(inside, place * WIDTH + (WIDTH - 1 - i), TAKEN)


@triton.jit
def _first(order, WIDTH: tl.constexpr):
    """The i of the highest."""
    return WIDTH - 1 - (tl.max(order, 0) & (WIDTH - 1)).to(tl.int32)


@triton.jit
def _choose(
    logits, bias, each, ids, weights, E, scale,
    K: tl.constexpr, WIDTH: tl.constexpr, K_WIDTH: tl.constexpr, GROUPS: tl.constexpr, USED: tl.constexpr,
    G_WIDTH: tl.constexpr, SCORE: tl.constexpr, BIAS: tl.constexpr, RENORMALIZE: tl.constexpr,
    EACH: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    e = tl.arange(0, WIDTH)
    inside = e < E
    logit = tl.load(logits + t * E + e, mask=inside, other=float("-inf"))
    score = _score(logit, SCORE)
    chosen_by = score if BIAS or GROUPS > 1 else logit  # scores of logits that differ can round to equals
    if BIAS:
        chosen_by += tl.load(bias + e, mask=inside, other=0.0)
    if GROUPS > 1:
        size = E // GROUPS
        g = tl.arange(0, G_WIDTH)
        merit = tl.zeros((G_WIDTH,), tl.float32)
        for group in range(GROUPS):
            order = _order(chosen_by, e, inside & (e // size == group), WIDTH)
            best = _first(order, WIDTH)
            both = tl.sum(tl.where(e == best, chosen_by, 0.0), 0)
            if size > 1:
                second = _first(tl.where(e == best, TAKEN, order), WIDTH)
                both += tl.sum(tl.where(e == second, chosen_by, 0.0), 0)
            merit = tl.where(g == group, both, merit)
        order = _order(merit, g, g < GROUPS, G_WIDTH)
        kept = e < 0
        for _ in range(USED):
            best = _first(order, G_WIDTH)
            kept = kept | (e // size == best)
            order = tl.where(g == best, TAKEN, order)
        chosen_by = tl.where(kept, chosen_by, float("-inf"))
    order = _order(chosen_by, e, inside, WIDTH)
    j = tl.arange(0, K_WIDTH)
    chosen = tl.zeros((K_WIDTH,), tl.int32)
    weight = tl.full((K_WIDTH,), float("-inf") if SCORE == SOFTMAX_WEIGHT else 0.0, tl.float32)
    for n in range(K):
        best = _first(order, WIDTH)
        order = tl.where(e == best, TAKEN, order)
        if CHUNK > 1:
            best = (best.to(tl.float32) * (1.0 / CHUNK)).to(tl.int32)
        chosen = tl.where(j == n, best, chosen)
        weight = tl.where(j == n, tl.sum(tl.where(e == best, score, 0.0), 0), weight)
    if SCORE == SOFTMAX_WEIGHT:
        weight = _softmax(weight)
        weight = tl.where(weight == weight, weight, 0.0)
    if RENORMALIZE:
        total = tl.sum(weight, 0)
        weight = tl.div_rn(weight, tl.where(total < SMALLEST_SUM, SMALLEST_SUM, total) + tl.zeros_like(weight))
    weight *= scale
    if EACH:
        weight *= tl.load(each + chosen, mask=j < K, other=0.0)
    tl.store(ids + t * K + j, chosen, mask=j < K)
    tl.store(weights + t * K + j, weight, mask=j < K)


def sizes(rule: RouterRule) -> dict[str, int]:
    """What of a rule the kernel is compiled for."""
    power = triton.next_power_of_2
    return {
        "K": rule.chosen, "WIDTH": power(rule.experts), "K_WIDTH": power(rule.chosen), "GROUPS": rule.groups,
        "USED": rule.groups_used, "G_WIDTH": power(rule.groups), "SCORE": int(rule.score),
        "BIAS": rule.bias is not None, "RENORMALIZE": rule.renormalize, "EACH": rule.each is not None,
        "CHUNK": rule.chunk,
    }  # fmt: skip


def options(rule: RouterRule) -> dict[str, int | bool]:
    """For Triton."""
    return {"num_warps": max(1, triton.next_power_of_2(rule.experts) // 256)} | EXACTLY


def choose(logits: Tensor, rule: RouterRule) -> tuple[Tensor, Tensor]:
    """logits [T, E] float32 -> ids [T, k] int32, best first and equals by id, and weights [T, k] float32."""
    tokens, experts = logits.shape
    if experts != rule.experts:
        raise ValueError(f"logits {list(logits.shape)} do not fit a router of {rule.experts} experts")
    ids = torch.empty(tokens, rule.chosen, dtype=torch.int32, device=logits.device)
    weights = torch.empty(tokens, rule.chosen, dtype=torch.float32, device=logits.device)
    if tokens:
        logits = logits.contiguous()
        bias, each = (logits if vector is None else vector.contiguous() for vector in (rule.bias, rule.each))
        given = logits, bias, each, ids, weights, experts, rule.scale
        _choose[(tokens,)](*given, **sizes(rule), **options(rule))
    return ids, weights
