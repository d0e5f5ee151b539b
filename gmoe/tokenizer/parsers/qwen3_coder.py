"""Qwen3-Coder and Qwen3.5: `<tool_call><function=name><parameter=key>value</parameter></function></tool_call>`."""

import re

from gmoe.tokenizer.parsers.arguments import ToolCall, Tools, Unfinished, Unreadable, typed
from gmoe.tokenizer.parsers.tags import THINK, Dialect, Parser, TagParser

TAGS = ("<tool_call>", "</tool_call>")
MARKS = (*THINK, *TAGS)
_FUNCTION = re.compile(r"\s*<function=([^>\n]+)>")
_PARAMETER = re.compile(r"\s*<parameter=([^>\n]+)>(\n?)")
_CLOSE = re.compile(r"\s*</function>")
_VALUE_END = r"""
    \n?</parameter>(?=\s*(?:<parameter=[^>\n]+>|</function>|<function=|\Z))  # what goes on is no end: it may be code
    | \n?(?=</function>\s*(?:<function=|\Z))
    | """
_LINES_END = re.compile(_VALUE_END + r"\n(?=<parameter=[^>\n]+>\n)", re.VERBOSE)
_WORD_END = re.compile(_VALUE_END + r"\n?(?=<parameter=[^>\n]+>)", re.VERBOSE)


def read(body: str, tools: Tools) -> list[ToolCall]:
    """The functions between the tags; one may lack its closing tag, and so may a parameter before another tag."""
    calls, at = [], 0
    while function := _FUNCTION.match(body, at):
        name = function[1].strip()
        pairs, at = _parameters(body, function.end())
        calls.append(ToolCall(name, {key: typed(tools, name, key, text) for key, text in pairs}))
    if not calls or body[at:].strip():
        raise Unreadable("no function, or something that is no parameter")
    return calls


def _parameters(body: str, at: int) -> tuple[list[tuple[str, str]], int]:
    """The parameters from there on, and where the function ends."""
    pairs = []
    while parameter := _PARAMETER.match(body, at):
        end = (_LINES_END if parameter[2] else _WORD_END).search(body, parameter.end(1) + 1)
        if not end:
            raise Unfinished("a parameter does not end")
        pairs.append((parameter[1].strip(), body[parameter.end() : end.start()]))
        at = end.end()
    close = _CLOSE.match(body, at)
    return pairs, close.end() if close else at


def parser(tools: Tools, prompt: str) -> Parser:
    """A new parser; some models leave the outer tags out, or the first of them."""
    tags = (TAGS, ("<function=", "</function>"))
    return TagParser(Dialect(calls=tags, stray=TAGS[1], read=_read_either), tools, prompt)


def _read_either(body: str, tools: Tools) -> list[ToolCall]:
    return read(body if body.lstrip().startswith("<function=") else f"<function={body}", tools)
