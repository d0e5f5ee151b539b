"""DeepSeek V3, R1 (a function's name, then fenced JSON) and V3.1 (a name, then JSON) between their own marks."""

import re

from gmoe.tokenizer.parsers.arguments import ToolCall, Tools, Unreadable, call_of, read_json
from gmoe.tokenizer.parsers.tags import THINK, Dialect, Parser, TagParser

TAGS = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")
BEGIN, SEPARATOR, END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
MARKS = (*THINK, *TAGS, BEGIN, SEPARATOR, END)
_FENCED = re.compile(r"\s*(?:function)?\s*([^\n]+)\n```(?:json)?\n(.*?)\n?```\s*", re.DOTALL)


def read(body: str, tools: Tools) -> list[ToolCall]:
    """Every call between the marks; the last may lack its end."""
    first, *parts = body.split(BEGIN)
    if first.strip() or not parts:
        raise Unreadable("no call begins here")
    return [_one(part.strip().removesuffix(END)) for part in parts]


def _one(text: str) -> ToolCall:
    name, mark, rest = text.partition(SEPARATOR)
    if not mark:
        raise Unreadable("a call has no name")
    fenced = _FENCED.fullmatch(rest)
    if fenced:  # there the word before the mark is the type of the tool
        name, rest = fenced[1], fenced[2]
    return call_of({"name": name.strip(), "arguments": read_json(rest)})


def parser(tools: Tools, prompt: str) -> Parser:
    """A new parser."""
    return TagParser(Dialect(calls=(TAGS,), read=read), tools, prompt)
