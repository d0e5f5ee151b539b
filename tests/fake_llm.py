"""A stand-in for gmoe.llm.LLM that says what it was told to say, without torch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from gmoe.engine.sampling import SamplingParams
from gmoe.library.modelfile import Modelfile


@dataclass(frozen=True)
class Event:
    text: str
    token_id: int | None = 0
    finish_reason: str | None = None


class FakeLLM:
    """Answers with `pieces`; an exception among them is raised there. Remembers what it was asked."""

    notices = ["it is a fake"]
    modelfile = Modelfile(())
    defaults = SamplingParams()
    dialect = "hermes"
    template = SimpleNamespace(source="{{ enable_thinking }}")

    def __init__(self, pieces: Sequence[str | BaseException] = ("Hello", " there")):
        self.pieces = pieces
        self.asked: list[tuple[Any, ...]] = []
        self.closed = False
        self.answers_closed = 0
        self.stats: dict[str, Any] = {"host": {"hits": 0, "misses": 0}, "prompt_tokens": 0, "prompt_seconds": 0.0}
        self.stats |= {"actions": {"load": {"count": 0, "mass": 0.0}}, "generated_tokens": 0, "decode_seconds": 0.0}
        self.file = SimpleNamespace(
            metadata={"general.license": "mit", "tokenizer.chat_template": "{{ enable_thinking }}"}
        )

    def generate(self, prompt: str, params: SamplingParams | None = None) -> Iterator[Event]:
        self.asked.append(("generate", prompt, params))
        return self._events()

    def chat(
        self, messages: Sequence[Mapping[str, Any]], params: SamplingParams | None = None, **template: Any
    ) -> Iterator[Event]:
        self.asked.append(("chat", list(messages), params, template))
        return self._events()

    def _events(self) -> Iterator[Event]:
        self.stats = {**self.stats, "prompt_tokens": self.stats["prompt_tokens"] + 3, "prompt_seconds": 1.5}
        self.stats["host"] = {"hits": self.stats["host"]["hits"] + 8, "misses": 2}
        try:
            for piece in self.pieces:
                if isinstance(piece, BaseException):
                    raise piece
                self.stats["generated_tokens"] += 1
                yield Event(piece)
        finally:
            self.answers_closed += 1

    def close(self) -> None:
        self.closed = True

    def __enter__(self) -> "FakeLLM":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
