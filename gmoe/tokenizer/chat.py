"""Chat templates: messages -> prompt text by the file's own jinja template, in a sandbox."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jinja2

from gmoe.gguf.file import GGUFError, UnsupportedModel
from gmoe.tokenizer.calls import SHAPES, Messages, Shape, shape_of, shaped
from gmoe.tokenizer.sandbox import Meter, Sandbox
from gmoe.tokenizer.tokenizer import Tokenizer

CHATML = (
    "{%- for message in messages -%}{{ '<|im_start|>' + message.role + '\n' }}"
    "{{ (message.content or '')"
    " + '<|im_end|>\n' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
MOST_TEXT = 16 << 20


class TemplateError(GGUFError):
    """A chat template that cannot be used on these messages; `fault` is the text without the file."""

    def __init__(self, fault: str, file: str = ""):
        super().__init__(f"{file}: {fault}" if file else fault)
        self.fault = fault


class ChatTemplate:
    """`render` gives the prompt; `fallback` says that the file has no template and ChatML is used."""

    def __init__(self, source: str | None, tokenizer: Tokenizer, file: str, named: Mapping[str, str] | None = None):
        self.file = file
        self.fallback = source is None
        self.source = CHATML if source is None else source
        self.named = dict(named or {})
        self._tokenizer = tokenizer
        self._compiled: dict[str, jinja2.Template] = {}
        self._shapes: dict[tuple[str, bool], Shape] = {}  # of calls, by template and whether there are tools
        self._environment = Sandbox()
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

    def source_for(self, tools: Sequence[Mapping[str, Any]] | None) -> str:
        """The template that is rendered with these tools, or with none."""
        return self.named.get("tool_use", self.source) if tools else self.source

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **kwargs: Any,
    ) -> str:
        """The prompt's text; `kwargs` such as `enable_thinking` go to the template; raises `TemplateError`.

        A lone surrogate counts as U+FFFD, as it does to the tokenizer.
        """
        source = self.source_for(tools)
        values = {
            "tools": list(tools) if tools else None,
            "add_generation_prompt": add_generation_prompt,
            "bos_token": self._special(self._tokenizer.bos_id),
            "eos_token": self._special(self._tokenizer.eos_id),
            **kwargs,
        }
        shape, key = SHAPES[0], (source, bool(tools))
        if any(message.get("tool_calls") for message in messages):
            if key not in self._shapes and (found := shape_of(messages, lambda m: self._tried(source, m, values))):
                self._shapes[key] = found
            shape = self._shapes.get(key, shape)
        return self._rendered(source, shaped(messages, shape), values)

    def _tried(self, source: str, messages: Messages, values: Mapping[str, Any]) -> str | None:
        try:
            return self._rendered(source, messages, values)
        except TemplateError:
            return None

    def _rendered(self, source: str, messages: Messages, values: Mapping[str, Any]) -> str:
        meter = self._environment.meter
        meter.start()
        try:
            if source not in self._compiled:  # which takes longer than most conversations
                self._compiled[source] = self._environment.from_string(source)
            return _limited(self._compiled[source].generate(messages=messages, **values), meter)
        except Exception as error:  # a template is a program: it can raise anything
            line = " ".join(str(error).split()) or type(error).__name__
            fault = f"tokenizer.chat_template: the template cannot be rendered: {line}"
            raise TemplateError(fault, self.file) from None
        finally:
            meter.stop()

    def _special(self, id: int | None) -> str:
        return "" if id is None else self._tokenizer.text(id)


def _limited(pieces: Iterator[str], meter: Meter) -> str:
    out, size = [], 0
    for piece in pieces:
        size += len(piece)
        if size > MOST_TEXT or meter.late():
            raise jinja2.TemplateError("its text does not end")
        out.append(piece)
    text = "".join(out)
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
