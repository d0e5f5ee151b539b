"""llama-server's names for samplers and settings, which OpenAI's dialect takes too."""

from collections.abc import Mapping, Sequence
from typing import Any

from gmoe.engine.sampling import SAMPLERS, SamplingParams
from gmoe.server.ask import Refused
from gmoe.server.body import short

DEFAULTS: Mapping[str, Any] = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}
NAMES: Mapping[str, str] = {name: "typ_p" if name == "typical_p" else name for name in SAMPLERS}  # ours: llama-server's
LETTERS = dict(zip("ekypmtdsxa", (*NAMES.values(), "dry", "top_n_sigma", "xtc", "adaptive_p"), strict=True))
OFF = ("dry", "top_n_sigma", "xtc", "adaptive_p")  # are not here, and in no chain as long as their options are off
THERE = f"the samplers are {', '.join(NAMES.values())}"


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
    names = "temperature top_k top_p min_p typical_p repeat_last_n repeat_penalty presence_penalty frequency_penalty"
    bias = [
        {"token": token, "bias": False if value == float("-inf") else value}
        for token, value in params.logit_bias.items()
    ]
    return {
        "seed": -1 if params.seed is None else params.seed,
        **{name: getattr(params, name) for name in names.split()},
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
