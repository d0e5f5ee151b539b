"""Options of llama-server and OpenAI that gmoe has not: refused where they would change the answer, else told."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from gmoe.server.ask import Refused
from gmoe.server.body import short
from gmoe.server.llama_options import THERE


class Lacking(NamedTuple):
    """`allows` the values that change nothing; `must` says which they are."""

    allows: Callable[[Any], bool]
    must: str


def _zero(value: Any) -> bool:
    return bool(value == 0)


def _empty(value: Any) -> bool:
    return not value


def _false(value: Any) -> bool:
    return value is False


LLAMA: Mapping[str, Lacking] = {
    "adaptive_target": Lacking(lambda value: value < 0, f"must be less than 0: {THERE}"),
    "n_indent": Lacking(_zero, "must be 0"),
    "post_sampling_probs": Lacking(_false, "must be false: probabilities are those before sampling"),
    "grammar_lazy": Lacking(_false, "must be false: a grammar counts from the first token on"),
    "lora": Lacking(lambda value: not any(one["scale"] for one in value), "must be empty: there are no adapters"),
    "image_data": Lacking(_empty, "must be empty: only text is read"),
}
OPENAI: Mapping[str, Lacking] = {
    **LLAMA,
    **dict.fromkeys(("functions", "function_call"), Lacking(_empty, "must be left out: there are tools")),
    "audio": Lacking(_empty, "must be left out: only text is written"),
    "modalities": Lacking(lambda value: value == ["text"], "must be ['text']"),
    "web_search_options": Lacking(lambda value: False, "must be left out: nothing is searched"),
    "best_of": Lacking(lambda value: value <= 1, "must be at most 1: n gives several answers"),
}
KNOBS = frozenset(  # of what is off
    "adaptive_decay grammar_triggers preserved_tokens".split()
)
ELSEWHERE = frozenset(  # what OpenAI's own service does with a request, not what it answers
    "user store metadata service_tier prediction safety_identifier prompt_cache_key prompt_cache_retention".split()
)
IDLE: Mapping[str, Collection[Any]] = {  # what changes nothing here, and the values with which it asks for nothing
    **dict.fromkeys(("id_slot", "sse_ping_interval"), (-1,)),
    **dict.fromkeys(("n_keep", "n_discard", "n_cache_reuse"), (0,)),
    **dict.fromkeys(("backend_sampling", "verbose"), (False,)),
    "verbosity": ("medium",),
    "reasoning_format": ("auto", "deepseek"),
}


def checked(body: Mapping[str, Any], known: Collection[str], lacking: Mapping[str, Lacking]) -> list[str]:
    """A warning for each key of a body that changes nothing; `known` are read. `Refused` for what is `lacking`."""
    warnings = []
    for name, value in body.items():
        if name in known or name in KNOBS or value is None:
            continue
        if name in lacking:
            if not _allowed(lacking[name], value):
                raise Refused(400, f"{name} is {short(value)}, which is not supported; it {lacking[name].must}")
        elif name not in IDLE:
            warnings.append(f"invalid option provided: {short(name)}")
        elif value not in IDLE[name]:
            warnings.append(f"{name} changes nothing here")
    return warnings


def _allowed(lacking: Lacking, value: Any) -> bool:
    try:
        return lacking.allows(value)
    except (TypeError, KeyError):
        return False
