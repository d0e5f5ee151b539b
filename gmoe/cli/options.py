"""Every field of RuntimeOptions and SamplingParams as a flag."""

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from inspect import signature
from typing import Any, TypeVar, cast

import click
from click.core import ParameterSource

from gmoe.cli.errors import usage
from gmoe.engine.sampling import SAMPLERS, SamplingParams
from gmoe.engine.suggested import samplers
from gmoe.experts.memory import available
from gmoe.loadable import require_options
from gmoe.options import RuntimeOptions

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
START = 160 << 20  # bytes that Python, torch and a tokenizer take before a model is there


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


HELP: Mapping[str, str] = {
    "device": "Where the non-expert part runs: auto (a GPU that passes a check, else the CPU), cpu, cuda, cuda:1.",
    "threads": "CPU threads; 0: the cores this process may use.",
    "context": "Tokens of KV cache a sequence; 0: the model's own, lowered to what fits.",
    "max_sequences": "Sequences decoded together.",
    "host_memory": "Budget for all weights in RAM: auto, 6GiB, 60%.",
    "gpu_memory": "Budget for weights and cache on the GPU: auto, 8GiB, 80%.",
    "reader": "How experts come from the disk: auto, direct (past the page cache), mapped (through it).",
    "kv_type": "Type of the KV cache: f16, bf16, f32, q8_0.",
    "activations": "Rounding of activations in the CPU kernels: q8, or float for none.",
    "route": "Policy: which experts are asked for.",
    "evict": "Policy: which expert leaves a full cache.",
    "prefetch": "Policy: which experts are fetched ahead.",
    "working_set": "Policy: which experts are kept for a while.",
    "miss": "Policy: what is done about an expert that is not there; auto, on a GPU: load or the CPU, by cost.",
    "quality": "exact, or as lossy as the model's calibration allows: high, balanced, fast.",
    "max_kld": "The same by a budget: nats a token that answers may be away from exact.",
    "policy": "A knob of the chosen policies; may be given again.",
    "twin": "Low-precision twin GGUF, for --miss twin and hobbit.",
    "trace": "Routing trace to warm the cache from.",
    "speculate": "auto: compute tokens that stood in the text before several at once, where that pays; or off.",
    "admission": "Who runs next: first_come, task (requests of one task together), deadline (latency targets).",
    "max_tokens": "Most tokens of an answer.",
    "temperature": "0: always the most likely token.",
    "top_k": "Keep the k most likely tokens; 0: all.",
    "top_p": "Keep the most likely tokens up to this probability.",
    "min_p": "Drop tokens less likely than this share of the best.",
    "typical_p": "Locally typical sampling; 1: off.",
    "min_keep": "Tokens that typical_p, top_p, min_p and XTC leave at least.",
    "repeat_last_n": "Tokens that the penalties look back; -1: the context.",
    "repeat_penalty": "Divide the scores of repeated tokens; 1: off.",
    "presence_penalty": "Subtract from the scores of tokens that were there.",
    "frequency_penalty": "Subtract from them for each time they were there.",
    "samplers": "What is applied, in which order: names between semicolons; what is not named is off.",
    "seed": "Seed of the sampling; -1: another each time.",
    "stop": "End the answer at this text; may be given again.",
    "logit_bias": "Add to the score of a token; may be given again.",
    "logprobs": "Report the probabilities of this many candidates.",
    "grammar": "Grammar that the answer must follow, GBNF or Lark.",
    "json_schema": 'JSON schema that the answer must follow; "json": any JSON object.',
    "grammar_after": "Begin with the grammar or schema behind this text.",
    "grammar_unless": "And that only in an answer which begins with this text.",
    "dry_multiplier": "Subtract from the scores of tokens that would go on repeating; 0: off.",
    "dry_base": "By how much each further repeated token multiplies that.",
    "dry_allowed_length": "Repeated tokens that cost nothing.",
    "dry_penalty_last_n": "Tokens in which repetitions are looked for; -1: the context.",
    "dry_sequence_breakers": "End repetitions at this text; may be given again.",
    "top_n_sigma": "Keep tokens within n standard deviations of the best score; 0 and below: off.",
    "xtc_probability": "How often all likely tokens but the least likely of them are dropped.",
    "xtc_threshold": "How probable a token must be to count as likely; above 0.5: off.",
    "dynatemp_range": "How far the temperature goes down where the model is sure, and up where it is not; 0: off.",
    "dynatemp_exponent": "How late the temperature goes up as the model grows less sure; 1: evenly.",
    "mirostat": "1, 2: Mirostat or Mirostat 2.0 instead of all samplers but the temperature.",
    "mirostat_tau": "Bits that a token should surprise by.",
    "mirostat_eta": "How fast the answer is led there.",
}
_SPECIAL: Mapping[str, Mapping[str, Any]] = {
    "policy": {"multiple": True, "callback": _knobs, "metavar": "KNOB=VALUE"},
    "logit_bias": {"multiple": True, "callback": _biases, "metavar": "TOKEN_ID=BIAS"},
    "samplers": {
        "default": ";".join(SAMPLERS),
        "callback": lambda ctx, param, value: samplers(value),
        "show_default": True,
    },
    "seed": {"type": int, "callback": lambda ctx, param, value: None if value == -1 else value},
    "stop": {"multiple": True},
    "dry_sequence_breakers": {"multiple": True, "default": SamplingParams.dry_sequence_breakers},
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
            function = click.option(flag, row.name, help=HELP[row.name], **settings)(function)
        return function

    return add


runtime_flags = _flags(RuntimeOptions)
sampling_flags = _flags(SamplingParams, without=frozenset({"seed"}))  # of a command that has both it is the request's


def window_flags(tokens: int, chunks: int) -> Callable[[F], F]:
    """`-c` and `--chunks` with these defaults: how a command cuts a text."""
    size = click.option(
        "-c", "--ctx-size", type=click.IntRange(min=4), default=tokens, show_default=True, help="Tokens of a window."
    )
    most = click.option(
        "--chunks",
        type=click.IntRange(min=0),
        default=chunks,
        show_default=True,
        help="Most windows; 0: all of the text.",
    )
    return lambda function: size(most(function))


def take(kind: Callable[..., T], given: dict[str, Any]) -> T:
    """Build the dataclass `kind` from those of a command's arguments that are its fields, taking them out.

    A value that it refuses is wrong usage. Where not even torch would fit, MemoryError: the system would kill it.
    """
    if kind is RuntimeOptions and (limit := available()).free < START:
        raise MemoryError(f"gmoe needs {START >> 20} MiB of memory to begin, {limit.source} leaves {limit.free >> 20}")
    names = [name for name in signature(kind).parameters if name in given]
    with usage():
        made = kind(**{name: given.pop(name) for name in names})
        if isinstance(made, RuntimeOptions):
            require_options(made)
            return cast(T, made.insisting(said()))
    return made


def said() -> set[str]:
    """The arguments of the running command that stand on its command line."""
    ctx = click.get_current_context(silent=True)
    given = ctx.params if ctx else {}
    return {name for name in given if ctx and ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE}
