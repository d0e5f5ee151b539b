"""Mistral: `[TOOL_CALLS]` and a list of objects, or `[TOOL_CALLS]name[ARGS]{...}` for each; thinks in `[THINK]`."""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from gmoe.tokenizer.parsers.arguments import ToolCall, Tools, Unreadable, call_of, read_json
from gmoe.tokenizer.parsers.tags import Dialect, Parser, TagParser

MARK, ARGUMENTS, IDENTITY = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
THINKING = ("[THINK]", "[/THINK]")
MARKS = (*THINKING, MARK, ARGUMENTS, IDENTITY)
_ID = re.compile(r"[a-zA-Z0-9]{9}")  # templates refuse others


def read(body: str, tools: Tools) -> list[ToolCall]:
    """All calls to the end of the answer."""
    if body.lstrip().startswith(("[", "{")):
        value = read_json(body)
        return [_named(one) for one in (value if isinstance(value, list) else [value])]
    calls = []
    for part in body.split(MARK):
        name, mark, text = part.partition(ARGUMENTS)
        if not mark:  # the newest write the object right behind the name
            name, brace, rest = part.partition("{")
            text = brace + rest
        name, _, id = name.partition(IDENTITY)
        if not name.strip():
            raise Unreadable("a call has no name")
        calls.append(_named({"name": name.strip(), "arguments": read_json(text), "id": id.strip()}))
    return calls


def _named(value: Any) -> ToolCall:
    id = value.get("id") if isinstance(value, Mapping) else None
    return call_of(value)._replace(id=id if isinstance(id, str) and _ID.fullmatch(id) else "")


def call_id(name: str, n: int) -> str:
    """The id of the n-th call."""
    return f"{n:09x}"[-9:]


def taken_id(id: str, name: str, n: int) -> str:
    """An id as the templates take it: another model's is told by nine letters of its own."""
    return id if _ID.fullmatch(id) else hashlib.sha256(id.encode(errors="replace")).hexdigest()[:9]


def parser(tools: Tools, prompt: str) -> Parser:
    """A new parser."""
    return TagParser(Dialect(think=("[THINK]", "[/THINK]"), calls=((MARK, ""),), read=read), tools, prompt)
