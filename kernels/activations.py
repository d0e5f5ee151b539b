"""The activations between up and down: their names, and the bound that a name may state; and the curves of gates."""

from functools import cache
from typing import Literal

KINDS = ("swiglu", "geglu", "reglu", "relu2", "swiglu_oai", "swiglu_within", "swiglu_under")
BOUNDED = "swiglu_within", "swiglu_under"
Curve = Literal["sigmoid", "softplus"]  # of a gate that something is multiplied with
LEAST = 1e-6  # a bound that is not above it is none, as in llama.cpp


def within(most: float) -> str:
    """SwiGLU whose factors are bounded: silu(gate) is at most `most`, up is no further from zero."""
    return f"swiglu_within:{most!r}" if most > LEAST else "swiglu"


def under(most: float) -> str:
    """SwiGLU of bounded numbers: gate is at most `most`, up is no further from zero."""
    return f"swiglu_under:{most!r}" if most > LEAST else "swiglu"


@cache
def kind_of(name: str) -> tuple[str, float]:
    """What an activation is and its bound, 0.0 where it has none; `ValueError` for a name that is none."""
    kind, _, most = name.partition(":")
    if kind not in KINDS or (kind in BOUNDED) != bool(most):
        raise ValueError(f"unknown activation {name!r}; known: {', '.join(KINDS)}, the last two with :<bound>")
    return kind, float(most or 0.0)
