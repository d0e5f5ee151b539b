"""Triton's router against the reference: compiled where there is a card."""

import os
from itertools import product

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

pytest.importorskip("triton", reason="triton is not installed")

from gmoe.kernels import cpu_step, reference_step
from gmoe.kernels.reference_step import RouterRule, Score
from gmoe.kernels.triton.router import choose

from tests.test_step_cpu import NEAR, RULES, random

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BIAS = random(60, seed=5, scale=0.2)
ALL = [
    RouterRule(score, 60, 6, groups, used, bias, renormalize, 2.5 if renormalize else 1.0)
    for score, (groups, used), bias, renormalize in product(
        Score, ((1, 1), (6, 2), (15, 4)), (None, BIAS), (False, True)
    )
]
WIDE = [RouterRule(Score.SOFTMAX, 1024, 22, renormalize=True), RouterRule(Score.SIGMOID, 1, 1)]


def both(logits: torch.Tensor, rule: RouterRule) -> None:
    bias, each = (None if vector is None else vector.to(DEVICE) for vector in (rule.bias, rule.each))
    with np.errstate(all="ignore"):  # numpy, which interprets, warns of what is no number
        ids, weights = (part.cpu() for part in choose(logits.to(DEVICE), rule._replace(bias=bias, each=each)))
    want_ids, want = reference_step.choose(logits, rule)
    assert ids.dtype == torch.int32 and torch.equal(ids, want_ids)
    torch.testing.assert_close(weights, want, equal_nan=True, **NEAR)


@pytest.mark.parametrize(
    "rule", [*ALL, *RULES, *WIDE], ids=lambda r: f"{r.score.name}-{r.experts}-{r.groups}-{r.bias is not None}"
)
def test_every_rule_chooses_as_the_reference(rule: RouterRule) -> None:
    both(random(7, rule.experts, scale=3.0), rule)


@pytest.mark.parametrize("rule", ALL[::5], ids=lambda r: f"{r.score.name}-{r.groups}-{r.bias is not None}")
def test_of_equals_the_first_is_chosen(rule: RouterRule) -> None:
    rule = rule._replace(bias=None)
    few = random(5, 60, scale=1.5).round()
    for logits in (torch.zeros(1, 60), few, 40.0 * few):
        both(logits, rule)
        assert torch.equal(cpu_step.Router(rule)(logits, 1)[0], reference_step.choose(logits, rule)[0])


@pytest.mark.parametrize("rule", ALL[::5], ids=lambda r: f"{r.score.name}-{r.groups}-{r.bias is not None}")
def test_what_is_no_number_is_served_as_the_reference_does(rule: RouterRule) -> None:
    logits = random(8, 60, scale=3.0)
    logits[0, 7] = logits[1] = float("nan")
    logits[2, 9] = float("inf")
    logits[3, 11] = float("-inf")
    logits[4] = float("-inf")
    logits[5, 1:] = float("-inf")
    logits[6] = 200.0 * logits[7]
    both(logits, rule)


def test_nobody_and_what_does_not_fit() -> None:
    rule = RouterRule(Score.SOFTMAX, 8, 2)
    ids, weights = choose(torch.empty(0, 8, device=DEVICE), rule)
    assert ids.shape == weights.shape == (0, 2)
    with pytest.raises(ValueError, match=r"logits \[1, 9\] do not fit a router of 8 experts"):
        choose(torch.zeros(1, 9, device=DEVICE), rule)
