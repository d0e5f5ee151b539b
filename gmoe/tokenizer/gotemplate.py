"""GoTemplate: the part of Go's text/template that the TEMPLATE of a Modelfile uses; the rest is refused."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gmoe.tokenizer.gofunctions import TemplateError, text_of
from gmoe.tokenizer.goparse import Node, Pipeline, Scope, parse

MAX_LENGTH = 16 << 20  # characters that one rendering may write
SECONDS, STEPS = 5.0, 1024  # that one rendering may take; steps of it between looks at the clock
ROLES = {"system": "System", "user": "Prompt", "assistant": "Response"}


class _Break(Exception):
    pass


class _Continue(Exception):
    pass


@dataclass(frozen=True)
class GoTemplate:
    """A parsed template."""

    nodes: tuple[Node, ...]

    @classmethod
    def parse(cls, text: str) -> "GoTemplate":
        """Read a template; what is beyond the subset is a `TemplateError` naming line and construct."""
        return cls(parse(text))

    @property
    def fields(self) -> frozenset[str]:
        """The first words of all fields that it reads: System, Messages, ..."""
        return frozenset(name for node in _walk(self.nodes) if node.pipeline for name in node.pipeline.fields)

    def render(self, values: Mapping[str, Any]) -> str:
        """The text; a field `.ToolCalls` is the key ToolCalls or tool_calls, and empty where there is neither."""
        out = _Writer()
        _run(self.nodes, Scope(values, {"$": values}), out)
        return "".join(out.pieces)

    def chat(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] = (), **values: Any) -> str:
        """The prompt of a conversation, open for the answer. `values` are further fields, as Think.

        Neighbours of one role are joined. A template without `.Messages` is rendered once a turn, and the last time
        only up to `.Response`.
        """
        template, fields = self, self.fields
        if not fields & {"Messages", "Response"}:
            template = GoTemplate((*self.nodes, *GoTemplate.parse("{{ .Response }}").nodes))
        messages = _joined(messages)
        given = {"Tools": list(tools), "Response": "", **values}
        if "Messages" in fields:
            system = "\n\n".join(_content(m) for m in messages if m["role"] == "system")
            return template.render({"System": system, "Messages": messages, **given})
        text, turn = "", dict.fromkeys(("System", "Prompt", "Response"), "")
        for message in messages:
            name = ROLES.get(message["role"])
            if (name == "System" and (turn["Prompt"] or turn["Response"])) or (name == "Prompt" and turn["Response"]):
                text += template.render(given | turn)
                turn = dict.fromkeys(turn, "")
            if name:
                turn[name] = _content(message)
        return text + GoTemplate(_cut(template.nodes)[0]).render(given | turn)


class _Writer:
    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.length, self.steps = 0, 0
        self.end = time.thread_time() + SECONDS  # of this thread's own work

    def step(self) -> None:
        self.steps += 1
        if self.steps % STEPS == 0 and time.thread_time() > self.end:
            raise TemplateError(f"the template ran longer than {SECONDS:g} seconds")

    def write(self, text: str) -> None:
        self.length += len(text)
        if self.length > MAX_LENGTH:
            raise TemplateError(f"the template writes more than {MAX_LENGTH} characters")
        self.pieces.append(text)


def _run(nodes: tuple[Node, ...], scope: Scope, out: _Writer) -> None:
    for node in nodes:
        out.step()
        if node.kind == "text":
            out.write(node.text)
        elif node.kind == "break":
            raise _Break
        elif node.kind == "continue":
            raise _Continue
        elif node.kind == "action" and node.pipeline:
            value = node.pipeline.run(scope)
            if not node.pipeline.names:
                out.write(text_of(value))
        elif node.pipeline:
            _block(node, node.pipeline, scope, out)


def _block(node: Node, pipeline: Pipeline, scope: Scope, out: _Writer) -> None:
    inner = Scope(scope.dot, {}, scope)
    if node.kind == "range":
        _range(node, pipeline, inner, out)
        return
    value = pipeline.run(inner)
    if value and node.kind == "with":
        inner.dot = value
    _run(node.body if value else node.otherwise, inner, out)


def _range(node: Node, pipeline: Pipeline, scope: Scope, out: _Writer) -> None:
    value = pipeline.value(scope)
    if not isinstance(value, Mapping | list | tuple | None):
        raise TemplateError(f"the template cannot range over {text_of(value)[:40]!r}")
    pairs = list(value.items() if isinstance(value, Mapping) else enumerate(value or ()))
    for key, item in pairs:
        out.step()
        inner = Scope(item, {}, scope)
        for name, given in zip(reversed(pipeline.names), (item, key), strict=False):
            (inner.names if pipeline.declares else scope.holder(name))[name] = given
        try:
            _run(node.body, inner, out)
        except _Continue:
            continue
        except _Break:
            break
    if not pairs:
        _run(node.otherwise, scope, out)


def _walk(nodes: tuple[Node, ...]) -> Iterator[Node]:
    for node in nodes:
        yield node
        yield from _walk(node.body)
        yield from _walk(node.otherwise)


def _cut(nodes: tuple[Node, ...]) -> tuple[tuple[Node, ...], bool]:
    """The pieces up to the first that reads `.Response`, and whether there was one."""
    kept: list[Node] = []
    for node in nodes:
        if node.pipeline and "Response" in node.pipeline.fields:
            return (*kept, Node(node.kind, node.text, node.pipeline)), True
        body, cut = _cut(node.body)
        otherwise, cut_otherwise = ((), True) if cut else _cut(node.otherwise)
        kept.append(Node(node.kind, node.text, node.pipeline, body, otherwise))
        if cut or cut_otherwise:
            return tuple(kept), True
    return tuple(kept), False


def _content(message: Mapping[str, Any]) -> str:
    return str(message.get("content") or "")


def _joined(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Neighbours of one role as one message, with the calls of all; answers of tools stay apart."""
    joined: list[dict[str, Any]] = []
    for message in messages:
        if joined and joined[-1]["role"] == message["role"] != "tool":
            texts = filter(None, (_content(joined[-1]), _content(message)))
            calls = [call for one in (joined[-1], message) for call in one.get("tool_calls") or ()]
            joined[-1] = {**joined[-1], **message, "content": "\n\n".join(texts), "tool_calls": calls}
        else:
            joined.append(dict(message))
    return joined
