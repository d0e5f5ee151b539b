"""Granite 3 and Phi-4-mini: `<|tool_call|>` and a list of objects; Granite's `<response>` around its answer."""

from gmoe.tokenizer.parsers.arguments import ToolCall, Tools, Unreadable, call_of, read_json
from gmoe.tokenizer.parsers.tags import THINK, Dialect, Parser, TagParser

MARK, END = "<|tool_call|>", "<|/tool_call|>"
MARKS = (*THINK, MARK, END)


def read(body: str, tools: Tools) -> list[ToolCall]:
    """All calls to the end of the answer."""
    value = read_json(body.strip().removesuffix(END))
    calls = value if isinstance(value, list) else [value]
    if not calls:
        raise Unreadable("no call")
    return [call_of(one) for one in calls]


def parser(tools: Tools, prompt: str) -> Parser:
    """A new parser; the older models write the mark as plain text."""
    calls, wrap = ((MARK, ""), ("<tool_call>[", "")), ("<response>", "</response>")
    return TagParser(Dialect(wrap=wrap, calls=calls, read=_read_either), tools, prompt)


def _read_either(body: str, tools: Tools) -> list[ToolCall]:
    try:
        return read(body, tools)
    except Unreadable:
        return read("[" + body, tools)
