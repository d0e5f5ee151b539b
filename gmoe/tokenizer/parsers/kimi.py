"""Kimi K2: `functions.name:0` and JSON between marks, all calls in one section."""

import re

from gmoe.tokenizer.parsers.arguments import ToolCall, Tools, Unreadable, call_of, read_json
from gmoe.tokenizer.parsers.tags import THINK, Dialect, Parser, TagParser

TAGS = ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>")
BEGIN, ARGUMENTS, END = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"
MARKS = (*THINK, *TAGS, BEGIN, ARGUMENTS, END)
_NAME = re.compile(r"(?:functions\.)?(.+?)(:\d+)?")


def read(body: str, tools: Tools) -> list[ToolCall]:
    """Every call of the section."""
    first, *parts = body.split(BEGIN)
    if first.strip() or not parts:
        raise Unreadable("no call begins here")
    calls = []
    for part in parts:
        name, _, text = part.strip().removesuffix(END).partition(ARGUMENTS)
        match = _NAME.fullmatch(name.strip())
        if not match:
            raise Unreadable("a call has no name")
        call = call_of({"name": match[1], "arguments": read_json(text)})
        calls.append(call._replace(id=match[0] if match[2] else ""))
    return calls


def call_id(name: str, n: int) -> str:
    """The id of the n-th call; the template shows the name of the function by nothing else."""
    return f"functions.{name}:{n}"


def taken_id(id: str, name: str, n: int) -> str:
    """An id as the template takes it: another model's does not show the name of the function."""
    match = _NAME.fullmatch(id)
    return id if (match and match[2]) or not name else call_id(name, n)


def parser(tools: Tools, prompt: str) -> Parser:
    """A new parser; some answers leave the marks of the section out."""
    return TagParser(Dialect(calls=(TAGS, (BEGIN, "")), read=_read_either), tools, prompt)


def _read_either(body: str, tools: Tools) -> list[ToolCall]:
    return read(body if body.lstrip().startswith(BEGIN) else f"{BEGIN}{body}", tools)
