"""Qwen3-Coder and Qwen3.5: `<tool_call><function=name><parameter=key>value</parameter></function></tool_call>`."""

import re

from gmoe.tokenizer.parsers.arguments import ToolCall, Tools, Unreadable, typed
from gmoe.tokenizer.parsers.tags import THINK, Dialect, Parser, TagParser

TAGS = ("<tool_call>", "</tool_call>")
MARKS = (*THINK, *TAGS)
_FUNCTION = re.compile(r"\s*<function=([^>\n]+)>(.*?)(?:</function>|\Z)", re.DOTALL)
_PARAMETER = re.compile(
    r"\s*<parameter=([^>\n]+)>\n?(.*?)(?:\n?</parameter>|\n?(?=<parameter=[^>\n]+>)|\n?\Z)", re.DOTALL
)


def read(body: str, tools: Tools) -> list[ToolCall]:
    """The functions between the tags; a parameter may lack its closing tag."""
    functions = list(_FUNCTION.finditer(body))
    if not functions or _FUNCTION.sub("", body).strip():
        raise Unreadable("no function")
    calls = []
    for function in functions:
        name, inner = function[1].strip(), function[2]
        if _PARAMETER.sub("", inner).strip():
            raise Unreadable("what stands between parameters is none")
        pairs = [(match[1].strip(), match[2]) for match in _PARAMETER.finditer(inner)]
        calls.append(ToolCall(name, {key: typed(tools, name, key, text) for key, text in pairs}))
    return calls


def parser(tools: Tools, prompt: str) -> Parser:
    """A new parser; some models leave the outer tag out."""
    tags = (TAGS, ("<function=", "</function>"))
    return TagParser(Dialect(calls=tags, read=_read_either), tools, prompt)


def _read_either(body: str, tools: Tools) -> list[ToolCall]:
    return read(body if body.lstrip().startswith("<function=") else f"<function={body}", tools)
