"""The activations between up and down: their names, and the bounds that a name may state; and the curves of gates."""

from functools import cache
from typing import Literal

KINDS = ("swiglu", "geglu", "reglu", "relu2", "swiglu_oai", "swiglu_within", "swiglu_under", "situ")
BOUNDS = {"swiglu_within": 1, "swiglu_under": 1, "situ": 2}  # that a name states behind colons
Curve = Literal["sigmoid", "softplus"]  # of a gate that something is multiplied with
LEAST = 1e-6  # a bound that is not above it is none, as in llama.cpp


def within(most: float) -> str:
    """SwiGLU whose factors are bounded: silu(gate) is at most `most`, up is no further from zero."""
    return f"swiglu_within:{most!r}" if most > LEAST else "swiglu"


def under(most: float) -> str:
    """SwiGLU of bounded numbers: gate is at most `most`, up is no further from zero."""
    return f"swiglu_under:{most!r}" if most > LEAST else "swiglu"


def situ(most: float, most_up: float) -> str:
    """most * tanh(gate / most) * sigmoid(gate) * most_up * tanh(up / most_up); up as it is if no number above 0."""
    return f"situ:{most!r}:{most_up!r}"


@cache
def kind_of(name: str) -> tuple[str, float, float]:
    """What an activation is, its bound and that of up, 0.0 where it has none; `ValueError` for a name that is none."""
    kind, *bounds = name.split(":")
    if kind not in KINDS or len(bounds) != BOUNDS.get(kind, 0):
        known = ", ".join(kind + ":<bound>" * BOUNDS.get(kind, 0) for kind in KINDS)
        raise ValueError(f"unknown activation {name!r}; known: {known}")
    most, most_up = (*map(float, bounds), 0.0, 0.0)[:2]
    return kind, most, most_up
