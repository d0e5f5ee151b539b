"""Chat templates: messages -> prompt text by the file's own jinja template, in a sandbox."""

import json
import math
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gmoe.gguf.file import GGUFError, UnsupportedModel
from gmoe.tokenizer.tokenizer import Tokenizer

CHATML = (
    "{%- for message in messages -%}{{ '<|im_start|>' + message.role + '\n' }}"
    "{{ (message.content or '')"
    " + '<|im_end|>\n' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
SECONDS = 5.0
MOST_TEXT = 16 << 20


class TemplateError(GGUFError):
    """A chat template that cannot be used on these messages."""


class _Generation(Extension):
    """`{% generation %}`, which marks text for training, renders what it encloses."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Clock(threading.local):
    """When the rendering of this thread must have ended, in seconds of its own work: others may keep it waiting."""

    end = math.inf

    def start(self) -> None:
        self.end = time.thread_time() + SECONDS

    def late(self) -> bool:
        return time.thread_time() > self.end


class _Sandbox(ImmutableSandboxedEnvironment):
    """No attributes that begin with an underscore, no mutation, an end to every loop, and no operation that is huge."""

    clock = _Clock()
    intercepted_binops = frozenset(("*", "**", "%"))
    padding = frozenset(("center", "ljust", "rjust", "zfill", "expandtabs"))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """As Jinja's, with a look at the clock in every turn of every loop."""
        template = super()._parse(source, name, filename)
        for loop in template.find_all(nodes.For):
            clock = nodes.Call(nodes.EnvironmentAttribute("_tick"), [], [], None, None)
            loop.body.insert(0, nodes.ExprStmt(clock).set_lineno(loop.lineno))
        return template

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        huge = {
            "*": lambda: _size(left) * _size(right) > MOST_TEXT,
            "**": lambda: isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > 1 << 16,
            "%": lambda: isinstance(left, str) and re.search(r"\d{6}|\*", left) is not None,
        }
        if huge[operator]():
            raise jinja2.TemplateError(f"the result of a {operator} would be too large")
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr not in self.padding and super().is_safe_attribute(obj, attr, value)

    def getattr(self, obj: Any, attribute: str) -> Any:
        self._tick()
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        self._tick()
        return super().getitem(obj, argument)

    def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
        self._tick()
        return super().call(context, obj, *args, **kwargs)

    def _tick(self) -> None:
        if self.clock.late():
            raise jinja2.TemplateError(f"it ran longer than {SECONDS:g} seconds")


class ChatTemplate:
    """`render` gives the prompt; `fallback` says that the file has no template and ChatML is used."""

    def __init__(self, source: str | None, tokenizer: Tokenizer, file: str, named: Mapping[str, str] | None = None):
        self.file = file
        self.fallback = source is None
        self.source = CHATML if source is None else source
        self.named = dict(named or {})
        self._tokenizer = tokenizer
        self._compiled: dict[str, jinja2.Template] = {}
        self._environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        del self._environment.globals["lipsum"], self._environment.filters["center"]
        self._environment.filters["tojson"] = _tojson
        self._environment.globals["raise_exception"] = _raise
        self._environment.globals["strftime_now"] = time.strftime

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], tokenizer: Tokenizer, file: str = "model") -> "ChatTemplate":
        """The template of `tokenizer.chat_template`, and its named variants; raises `UnsupportedModel`."""
        prefix = "tokenizer.chat_template."
        for key, value in metadata.items():
            if (key.startswith(prefix) or key == prefix[:-1]) and not isinstance(value, str):
                raise UnsupportedModel(file, key, "must be text")
        named = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
        return cls(metadata.get(prefix[:-1], named.get("default")), tokenizer, file, named)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **kwargs: Any,
    ) -> str:
        """The prompt's text; `kwargs` such as `enable_thinking` go to the template; raises `TemplateError`."""
        source = self.named.get("tool_use", self.source) if tools else self.source
        values = {
            "messages": [dict(message) for message in messages],
            "tools": list(tools) if tools else None,
            "add_generation_prompt": add_generation_prompt,
            "bos_token": self._special(self._tokenizer.bos_id),
            "eos_token": self._special(self._tokenizer.eos_id),
            **kwargs,
        }
        clock = self._environment.clock
        clock.start()
        try:
            if source not in self._compiled:  # which takes longer than most conversations
                self._compiled[source] = self._environment.from_string(source)
            return _limited(self._compiled[source].generate(values), clock)
        except (
            jinja2.TemplateError,
            TypeError,
            ValueError,
            ArithmeticError,
            LookupError,
            AttributeError,
            RecursionError,
            MemoryError,
        ) as error:
            line = " ".join(str(error).split()) or type(error).__name__
            raise TemplateError(
                f"{self.file}: tokenizer.chat_template: the template cannot be rendered: {line}"
            ) from None

    def _special(self, id: int | None) -> str:
        return "" if id is None else self._tokenizer.text(id)


def _size(factor: Any) -> int:
    return len(factor) if isinstance(factor, (str, list, tuple)) else abs(factor) if isinstance(factor, int) else 1


def _limited(pieces: Iterator[str], clock: _Clock) -> str:
    out, size = [], 0
    for piece in pieces:
        size += len(piece)
        if size > MOST_TEXT or clock.late():
            raise jinja2.TemplateError("its text does not end")
        out.append(piece)
    return "".join(out)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **more: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **more)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
