"""SamplingParams: how one request's tokens are chosen; frozen and checked."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class SamplingParams:
    """The fields of llama.cpp's samplers with Ollama's defaults; a value out of range is a `ValueError` naming it."""

    max_tokens: int | None = None  # None: until the model ends or the context is full
    temperature: float = 0.8  # 0: greedy
    top_k: int = 40  # 0: off
    top_p: float = 0.9
    min_p: float = 0.0
    typical_p: float = 1.0
    repeat_last_n: int = 64  # -1: the whole context
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None  # how many of the best to report beside the chosen one
    grammar: str | None = None
    json_schema: Any = None

    def __post_init__(self) -> None:
        for name, low, high in (
            ("temperature", 0.0, float("inf")),
            ("top_k", 0, float("inf")),
            ("top_p", 0.0, 1.0),
            ("min_p", 0.0, 1.0),
            ("typical_p", 0.0, 1.0),
            ("repeat_last_n", -1, float("inf")),
            ("repeat_penalty", 1e-6, float("inf")),
            ("max_tokens", 1, float("inf")),
            ("logprobs", 0, 1000),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name} is {value}; it must lie between {low:g} and {high:g}")
        for name in ("grammar", "json_schema"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name} is not supported yet")
        if isinstance(self.stop, str) or "" in self.stop:
            raise ValueError("stop must be a list of texts, none of them empty")
