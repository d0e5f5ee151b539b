"""MiniMax-M3: `<invoke name="f">` and its arguments as elements, which may hold others; each tag is behind a mark."""

import re
from typing import Any, NamedTuple

from gmoe.tokenizer.parsers.arguments import (
    ToolCall,
    Tools,
    Unreadable,
    as_declared,
    declared,
    items_of,
    properties_of,
    types_of,
)
from gmoe.tokenizer.parsers.tags import Dialect, Parser, TagParser

MARK = "]<]minimax[>["
THINKING = ("<mm:think>", "</mm:think>")
TAGS = (f"{MARK}<tool_call>", f"{MARK}</tool_call>")
MARKS = (*THINKING, MARK)
DEEPEST = 64
_TAG = re.compile(r'<(/?)([^<>"]+?)(?: name="([^"]+)")?>(.*)', re.DOTALL)


class Element(NamedTuple):
    """`name`: what an `invoke` gives; `text`: what is behind the opening tag."""

    tag: str
    name: str
    text: str
    inner: list["Element"]


def read(body: str, tools: Tools) -> list[ToolCall]:
    """Every `invoke` between the tags."""
    calls = []
    for element in _elements(body):
        if element.tag != "invoke" or not element.name or element.text.strip():
            raise Unreadable("something that is no invoke")
        schemas = declared(tools, element.name)
        calls.append(ToolCall(element.name, {one.tag: _value(one, schemas.get(one.tag)) for one in element.inner}))
    return calls


def _elements(body: str) -> list[Element]:
    space, *parts = body.split(MARK)
    open_ = [Element("", "", space, [])]
    for part in parts:
        match = _TAG.fullmatch(part)
        if not match or len(open_) > DEEPEST:
            raise Unreadable("a mark without a tag, or too many within one another")
        closes, tag, name, text = match.groups()
        if not closes:
            open_.append(Element(tag, name or "", text, []))
        elif len(open_) < 2 or open_[-1].tag != tag or text.strip():
            raise Unreadable("a tag that nobody opened, or text behind an end")
        else:
            open_[-2].inner.append(open_.pop())
    if len(open_) > 1 or space.strip() or not open_[0].inner:
        raise Unreadable("a tag that is not closed, or none")
    return open_[0].inner


def _value(element: Element, schema: Any) -> Any:
    if not element.inner:
        empty: Any = {} if "object" in types_of(schema) else [] if "array" in types_of(schema) else None
        return as_declared(schema, element.text) if element.text.strip() or empty is None else empty
    if element.text.strip():
        raise Unreadable("text between elements")
    types = types_of(schema)
    if all(one.tag == "item" for one in element.inner) and ("array" in types or "object" not in types):
        return [_value(one, items_of(schema)) for one in element.inner]
    fields = properties_of(schema)
    return {one.tag: _value(one, fields.get(one.tag)) for one in element.inner}


def parser(tools: Tools, prompt: str) -> Parser:
    """A new parser; an answer that does not think begins with the end of thinking."""
    return TagParser(Dialect(THINKING, wrap=(THINKING[1], ""), calls=(TAGS,), read=read), tools, prompt)
