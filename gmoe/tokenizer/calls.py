"""The tool calls of a conversation in the shapes that chat templates read."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Messages = Sequence[Mapping[str, Any]]
NAME, KEY = "gmoe_name", "gmoe_key"  # of the call that a template is tried with


class Shape(NamedTuple):
    """Whether the arguments are text, and whether a content that is empty is null."""

    text: bool
    null: bool


SHAPES = (Shape(False, False), Shape(False, True), Shape(True, False), Shape(True, True))


def shape_of(messages: Messages, render: Callable[[Messages], str | None]) -> Shape | None:
    """The first shape in which a template shows the calls, and no mapping as Python writes it; else the first of all.

    `render` gives None where the template fails; so does this where it fails in every shape.
    """
    probe = [_with_calls(message, _as_probe) for message in messages]
    texts = {shape: render(shaped(probe, shape)) for shape in SHAPES}
    good = (shape for shape, text in texts.items() if text and NAME in text and f"'{KEY}'" not in text)
    return next(good, SHAPES[0] if any(text is not None for text in texts.values()) else None)


def shaped(messages: Messages, shape: Shape) -> list[dict[str, Any]]:
    """The messages with their calls in this shape."""
    return [_shaped(message, shape) if message.get("tool_calls") else dict(message) for message in messages]


def _shaped(message: Mapping[str, Any], shape: Shape) -> dict[str, Any]:
    given = _with_calls(message, _as_text) if shape.text else dict(message)
    return given | {"content": None} if shape.null and not given.get("content") else given


def _as_text(function: dict[str, Any]) -> dict[str, Any]:
    given = function.get("arguments")
    return function | {"arguments": given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)}


def _as_probe(function: dict[str, Any]) -> dict[str, Any]:
    return function | {"name": NAME, "arguments": {KEY: 1}}


def _with_calls(message: Mapping[str, Any], change: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    calls = [
        {**call, "function": change(dict(call["function"]))} if isinstance(call.get("function"), Mapping) else call
        for call in message.get("tool_calls") or ()
    ]
    return {**message, "tool_calls": calls} if calls else dict(message)
