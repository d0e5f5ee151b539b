"""Every field of RuntimeOptions and SamplingParams as a flag, and the flags back as those two."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from gmoe.engine.sampling import SamplingParams
from gmoe.options import ACTIVATIONS, KV_TYPES, RuntimeOptions

Command = TypeVar("Command", bound=Callable[..., Any])

RUNTIME: dict[str, tuple[Any, str]] = {
    "device": (str, "Where the non-expert part runs: auto, cpu, cuda, cuda:1."),
    "threads": (int, "CPU threads; 0: the cores this process may use."),
    "context": (int, "Tokens of KV cache a sequence; 0: the model's own, lowered to what fits."),
    "max_sequences": (int, "Sequences decoded together."),
    "host_memory": (str, "Budget for all weights in RAM: auto, 6GiB, 60%."),
    "gpu_memory": (str, "Budget for weights and cache on the GPU: auto, 8GiB, 80%."),
    "kv_type": (click.Choice(KV_TYPES), "Type of the KV cache."),
    "activations": (click.Choice(ACTIVATIONS), "Rounding of activations in the CPU kernels."),
    "route": (str, "Policy: which experts are asked for."),
    "evict": (str, "Policy: which expert leaves a full cache."),
    "prefetch": (str, "Policy: which experts are fetched ahead."),
    "working_set": (str, "Policy: which experts are kept for a while."),
    "miss": (str, "Policy: what is done about an expert that is not there."),
    "policy": ("pairs", "A knob of the chosen policies, such as t1=0.6; may be given again."),
    "twin": (click.Path(path_type=Path), "Low-precision twin GGUF, for --miss twin and hobbit."),
    "trace": (click.Path(path_type=Path), "Routing trace to warm the cache from."),
    "seed": (int, "Seed of the sampling."),
}

SAMPLING: dict[str, tuple[Any, str]] = {
    "max_tokens": (int, "Most tokens of an answer; unlimited if not given."),
    "temperature": (float, "0: always the most likely token."),
    "top_k": (int, "Keep the k most likely tokens; 0: all."),
    "top_p": (float, "Keep the most likely tokens up to this probability."),
    "min_p": (float, "Drop tokens less likely than this share of the best."),
    "typical_p": (float, "Locally typical sampling; 1: off."),
    "repeat_last_n": (int, "Tokens that the penalties look back; -1: the context."),
    "repeat_penalty": (float, "Divide the scores of repeated tokens; 1: off."),
    "presence_penalty": (float, "Subtract from tokens that were there."),
    "frequency_penalty": (float, "Subtract from tokens for each time they were there."),
    "stop": ("texts", "End the answer at this text; may be given again."),
    "logit_bias": ("pairs", "TOKEN=BIAS added to a token's score; may be given again."),
    "logprobs": (int, "Report the probabilities of this many candidates."),
    "grammar": (str, "GBNF grammar that the answer must follow."),
    "json_schema": (str, "JSON schema that the answer must follow."),
}


def runtime_options(command: Command) -> Command:
    """Decorator: a flag for every field of RuntimeOptions; `runtime` reads them back."""
    return _with_flags(command, RUNTIME, RuntimeOptions())


def sampling_options(command: Command) -> Command:
    """Decorator: a flag for every field of SamplingParams but `seed`, which RuntimeOptions has too."""
    return _with_flags(command, SAMPLING, SamplingParams())


def runtime(flags: Mapping[str, Any]) -> RuntimeOptions:
    """The options that the flags ask for; a value out of range is a usage error."""
    given = _given(flags, RUNTIME)
    with_knobs = {"policy": dict(_pair(p) for p in given.pop("policy"))} if "policy" in given else {}
    return _checked(RuntimeOptions, given | with_knobs)


def sampling(flags: Mapping[str, Any]) -> SamplingParams:
    """The sampling parameters that the flags ask for; a value out of range is a usage error."""
    given = _given(flags, [*SAMPLING, "seed"])
    if "logit_bias" in given:
        given["logit_bias"] = dict(_token_bias(pair) for pair in given["logit_bias"])
    if "json_schema" in given:
        given["json_schema"] = _json(given["json_schema"])
    return _checked(SamplingParams, given)


def _with_flags(command: Command, table: Mapping[str, tuple[Any, str]], defaults: Any) -> Command:
    for name, (kind, text) in reversed(table.items()):
        default = getattr(defaults, name)
        if default not in (None, (), {}):
            text = f"{text}  [default: {default}]"
        many = kind in ("pairs", "texts")
        metavar = {"pairs": "NAME=VALUE", "texts": "TEXT"}.get(kind) if many else None
        flag = "--" + name.replace("_", "-")
        option = click.option(
            flag, name, type=str if many else kind, multiple=many, metavar=metavar, default=None, help=text
        )
        command = option(command)
    return command


def _given(flags: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: flags[name] for name in names if flags.get(name) not in (None, ())}


def _checked(kind: Callable[..., Any], values: Mapping[str, Any]) -> Any:
    try:
        return kind(**values)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _pair(text: str) -> tuple[str, Any]:
    """`name=value`, the value as JSON if it is that, else as text."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise click.UsageError(f"{text!r} is not written NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _token_bias(text: str) -> tuple[int, float]:
    name, value = _pair(text)
    if not name.isdecimal() or isinstance(value, bool) or not isinstance(value, int | float):
        raise click.UsageError(f"logit bias {text!r} is not written TOKEN=BIAS, both numbers")
    return int(name), float(value)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise click.UsageError(f"the JSON schema is not JSON: {error}") from None
