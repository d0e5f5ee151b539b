"""SamplingParams: how one request's tokens are chosen; frozen and checked."""

import json
import math
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

_INF = math.inf
_MOST = sys.float_info.max
_RANGES: tuple[tuple[str, type, float, float], ...] = (
    ("max_tokens", int, 1, _INF),
    ("temperature", float, -_INF, _INF),
    ("top_k", int, 0, _INF),
    ("top_p", float, 0, 1),
    ("min_p", float, 0, 1),
    ("typical_p", float, 0, 1),
    ("min_keep", int, 0, _INF),
    ("repeat_last_n", int, -1, _INF),
    ("repeat_penalty", float, 1e-6, _INF),
    ("presence_penalty", float, -_INF, _INF),
    ("frequency_penalty", float, -_INF, _INF),
    ("seed", int, -_INF, _INF),
    ("logprobs", int, 0, 1000),
    ("dry_multiplier", float, 0, _INF),
    ("dry_base", float, 1, _INF),
    ("dry_allowed_length", int, 0, _INF),
    ("dry_penalty_last_n", int, -1, _INF),
    ("top_n_sigma", float, -_INF, _INF),
    ("xtc_probability", float, 0, 1),
    ("xtc_threshold", float, 0, 1),
    ("dynatemp_range", float, 0, _INF),
    ("dynatemp_exponent", float, 0, _INF),
    ("mirostat", int, 0, 2),
    ("mirostat_tau", float, 0, _INF),
    ("mirostat_eta", float, 0, _INF),
)
SAMPLERS = tuple(  # in llama.cpp's order
    "penalties dry top_n_sigma top_k typical_p top_p min_p xtc temperature".split()
)
MOST_SAMPLERS = 32  # each is applied to every token
_MAY_BE_NONE = ("max_tokens", "seed", "logprobs")


def lenient(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `SamplingParams` as llama.cpp and Ollama read them: off are a `top_k` below 0 and shares above 1."""
    out = dict(values)
    for name, value in values.items():
        if name in ("top_k", "top_p", "typical_p") and isinstance(value, int | float):
            out[name] = max(0, value) if name == "top_k" else min(value, 1.0)
    return out


@dataclass(frozen=True)
class SamplingParams:
    """The fields of llama.cpp's samplers with Ollama's defaults; a value out of range is a `ValueError` naming it."""

    max_tokens: int | None = None  # None: until the model ends or the context is full
    temperature: float = 0.8  # 0 and below: greedy, where no dynatemp_range reaches above
    top_k: int = 40  # 0: off
    top_p: float = 0.9
    min_p: float = 0.0
    typical_p: float = 1.0
    min_keep: int = 0  # so many tokens are left by top_p, min_p, typical_p and XTC
    repeat_last_n: int = 64  # 0: no penalties; -1: the whole context
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    samplers: tuple[str, ...] = SAMPLERS  # in this order, each as often as it is named; one that is not named is off
    seed: int | None = None  # every integer is a seed; None: other tokens each time
    stop: tuple[str, ...] = ()
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # an id outside the vocabulary has no effect
    logprobs: int | None = None  # how many of the best to report beside the chosen one
    grammar: str | None = None  # GBNF, as llama.cpp has it, or Lark, as llguidance has it
    json_schema: Any = None  # a mapping or its JSON text; True or "json": any JSON object
    grammar_after: str | None = None  # the text behind which the grammar or schema begins, as "</think>"
    grammar_unless: str | None = None  # and that only in an answer which begins with this text, as "<think>"
    dry_multiplier: float = 0.0  # 0: nothing is done about repeated sequences
    dry_base: float = 1.75
    dry_allowed_length: int = 2  # tokens that may be repeated before it costs something
    dry_penalty_last_n: int = 64  # 0: off; -1: the whole context
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")  # repetitions end at every token with one in it
    top_n_sigma: float = -1.0  # 0 and below: off
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1  # above 0.5: off
    dynatemp_range: float = 0.0  # the temperature goes so far below where the model is sure, and above where it is not
    dynatemp_exponent: float = 1.0
    mirostat: int = 0  # 1, 2: Mirostat or Mirostat 2.0 in the place of all samplers but the temperature
    mirostat_tau: float = 5.0  # bits that a token should surprise by
    mirostat_eta: float = 0.1  # how fast the answer is led there

    def __post_init__(self) -> None:
        for name, kind, low, high in _RANGES:
            self._check_number(name, kind, low, high)
        for name in ("stop", "dry_sequence_breakers"):
            texts = getattr(self, name)
            if not _several(texts) or not all(isinstance(text, str) and text for text in texts):
                raise ValueError(f"{name} must be a list of texts, none of them empty")
        several = _several(self.samplers)
        if unknown := [name for name in self.samplers if name not in SAMPLERS] if several else [self.samplers]:
            raise ValueError(f"samplers has {unknown[0]!r}; there are {', '.join(SAMPLERS)}")
        if len(self.samplers) > MOST_SAMPLERS:
            raise ValueError(f"samplers has {len(self.samplers)} names; it must have at most {MOST_SAMPLERS}")
        if not isinstance(self.logit_bias, Mapping):
            raise ValueError(f"logit_bias is {self.logit_bias!r}; it must map token ids to numbers")
        for token, bias in self.logit_bias.items():
            number = isinstance(bias, int | float) and (bias == -_INF or -_MOST <= bias <= _MOST)
            if type(token) is not int or not number:
                raise ValueError(f"logit_bias has {token!r}: {bias!r}; it maps token ids to numbers")
        for name in ("grammar", "grammar_after", "grammar_unless"):
            text = getattr(self, name)
            if text is not None and (not isinstance(text, str) or not text.strip()):
                raise ValueError(f"{name} is {text!r}; it must be text")
        if self.schema is not None and self.grammar is not None:
            raise ValueError("grammar and json_schema are both given; an answer follows one of them")

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken, whatever the other samplers say."""
        return self.temperature + self.dynatemp_range <= 0 and "temperature" in self.samplers

    @property
    def schema(self) -> Mapping[str, Any] | None:
        """`json_schema` as a mapping; what is neither a schema nor "json" is a `ValueError`."""
        value = self.json_schema
        if value is None or value is False:
            return None
        if value is True or value == "json":
            return {"type": "object"}
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                pass
        if not isinstance(value, Mapping):
            raise ValueError(f'json_schema is {value!r}; it must be a JSON schema, or "json" for any JSON object')
        return value

    def _check_number(self, name: str, kind: type, low: float, high: float) -> None:
        value = getattr(self, name)
        if value is None and name in _MAY_BE_NONE:
            return
        allowed = (int,) if kind is int else (int, float)
        if isinstance(value, bool) or not isinstance(value, allowed) or not -_INF < value < _INF:
            raise ValueError(f"{name} is {value!r}; it must be {'an integer' if kind is int else 'a finite number'}")
        if not -_MOST <= value <= _MOST:
            raise ValueError(f"{name} must be between {-_MOST:g} and {_MOST:g}")
        if not low <= value <= high:
            bounds = f"at least {low:g}" if high == _INF else f"between {low:g} and {high:g}"
            raise ValueError(f"{name} is {value}; it must be {bounds}")


def _several(value: Any) -> bool:
    """Whether it is a list or the like; one text is not."""
    return isinstance(value, Collection) and not isinstance(value, str)
