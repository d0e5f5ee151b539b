"""llama-server's names for samplers and settings, which OpenAI's dialect takes too."""

from collections.abc import Mapping, Sequence
from typing import Any

from gmoe.engine.sampling import SAMPLERS, SamplingParams
from gmoe.server.ask import Refused
from gmoe.server.body import Body, short

DEFAULTS: Mapping[str, Any] = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}
NAMES: Mapping[str, str] = {name: "typ_p" if name == "typical_p" else name for name in SAMPLERS}  # ours: llama-server's
LETTERS = dict(zip("edskypmxta", (*NAMES.values(), "adaptive_p"), strict=True))
OFF = ("adaptive_p",)  # is not here, and in no chain as long as its options are off
THERE = f"the samplers are {', '.join(NAMES.values())}"


class SamplingBody(Body):
    """Fields that /completion and OpenAI's routes have in common."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    min_keep: int | None = None
    repeat_last_n: int | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    samplers: str | list[str] | None = None
    seed: int | None = None
    dry_multiplier: float | None = None
    dry_base: float | None = None
    dry_allowed_length: int | None = None
    dry_penalty_last_n: int | None = None
    dry_sequence_breakers: list[str] | None = None
    top_n_sigma: float | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    dynatemp_range: float | None = None
    dynatemp_exponent: float | None = None
    mirostat: int | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    return_progress: bool | None = None


# Those that llama-server calls as `SamplingParams` does, and means alike.
FIELDS = tuple(name for name in SamplingBody.model_fields if name not in ("samplers", "seed", "return_progress"))


def sampled(given: SamplingBody) -> dict[str, Any]:
    """Those that are given, as fields of `SamplingParams`."""
    sampling = {name: getattr(given, name) for name in (*FIELDS, "seed") if getattr(given, name) is not None}
    if given.seed == -1:
        sampling["seed"] = None  # any, whatever the model's own is
    if "dry_sequence_breakers" in sampling:
        sampling["dry_sequence_breakers"] = tuple(filter(None, sampling["dry_sequence_breakers"]))
    if given.samplers is not None:
        sampling["samplers"] = samplers_of(given.samplers)
    return sampling


def samplers_of(given: str | Sequence[str]) -> tuple[str, ...]:
    """`samplers` as that field of `SamplingParams`: names, or a letter for each as llama.cpp has them."""
    ours = {theirs: name for name, theirs in NAMES.items()} | {name: name for name in NAMES}
    chosen = []
    for name in given:
        name = LETTERS.get(name, name) if isinstance(given, str) else name
        if name in ours:
            chosen.append(ours[name])
        elif name not in OFF:
            raise Refused(400, f"samplers: {short(name)} is not supported; {THERE}")
    return tuple(chosen)


def settings(params: SamplingParams, **more: Any) -> dict[str, Any]:
    """How an answer is made, in llama-server's words."""
    bias = [
        {"token": token, "bias": False if value == float("-inf") else value}
        for token, value in params.logit_bias.items()
    ]
    return {
        "seed": -1 if params.seed is None else params.seed,
        **{name: getattr(params, name) for name in FIELDS},
        "stop": list(params.stop),
        "logit_bias": bias,
        "n_probs": params.logprobs or 0,
        "grammar": params.grammar or "",
        "samplers": [NAMES[name] for name in params.samplers],
        **more,
    }


def fields_of(body: Mapping[str, Any], paths: Sequence[str]) -> dict[str, Any]:
    """`response_fields`: what stands at each path of keys between slashes, under that path; all without any."""
    if not paths:
        return dict(body)
    found = {}
    for path in paths:
        value: Any = body
        for key in path.split("/"):
            value = value.get(key, _NOTHING) if isinstance(value, Mapping) else _NOTHING
        if value is not _NOTHING:
            found[path] = value
    return found


_NOTHING = object()
