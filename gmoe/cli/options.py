"""Every field of RuntimeOptions and SamplingParams as a flag."""

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar, cast

import click

from gmoe.engine.sampling import SamplingParams
from gmoe.options import RuntimeOptions

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


def _knobs(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> dict[str, Any]:
    """`--policy t1=0.6` -> {"t1": 0.6}; the value is read as JSON, or taken as text."""
    knobs: dict[str, Any] = {}
    for item in value:
        name, sign, text = item.partition("=")
        if not sign:
            raise click.BadParameter(f"{item!r} is not KNOB=VALUE")
        try:
            knobs[name] = json.loads(text)
        except ValueError:
            knobs[name] = text
    return knobs


def _biases(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> dict[int, float]:
    try:
        return {int(token): float(bias) for token, _, bias in (item.partition("=") for item in value)}
    except ValueError:
        raise click.BadParameter("must be TOKEN_ID=BIAS, both numbers") from None


_SPECIAL: Mapping[str, Mapping[str, Any]] = {
    "policy": {"multiple": True, "callback": _knobs, "metavar": "KNOB=VALUE"},
    "logit_bias": {"multiple": True, "callback": _biases, "metavar": "TOKEN_ID=BIAS"},
    "stop": {"multiple": True},
}


def _flags(kind: type[Any], without: frozenset[str] = frozenset()) -> Callable[[F], F]:
    def add(function: F) -> F:
        for row in reversed(fields(kind)):
            if row.name in without:
                continue
            flag, settings = "--" + row.name.replace("_", "-"), dict(_SPECIAL.get(row.name, {}))
            if not settings:
                default = None if row.default is MISSING else row.default
                names = str(row.type)
                number = int if "int" in names else float if "float" in names else str
                settings = {"default": default, "type": number, "show_default": default is not None}
            function = click.option(flag, row.name, **settings)(function)
        return function

    return add


runtime_flags = _flags(RuntimeOptions, without=frozenset({"seed"}))  # --seed is the request's
sampling_flags = _flags(SamplingParams)


def take(kind: type[T], given: dict[str, Any]) -> T:
    """Build `kind` out of a command's arguments, taking those of its fields that are flags out of them."""
    return kind(**{row.name: given.pop(row.name) for row in fields(cast(Any, kind)) if row.name in given})
