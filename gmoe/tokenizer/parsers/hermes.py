"""Hermes, Qwen2.5, Qwen3, Granite 4 and many more: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`."""

from gmoe.tokenizer.parsers.arguments import ToolCall, Tools, call_of, read_values
from gmoe.tokenizer.parsers.tags import THINK, Dialect, Parser, TagParser

TAGS = ("<tool_call>", "</tool_call>")
MARKS = (*THINK, *TAGS)


def read(body: str, tools: Tools) -> list[ToolCall]:
    """One object, or several one after another."""
    return [call_of(value) for value in read_values(body)]


def parser(tools: Tools, prompt: str) -> Parser:
    """A new parser."""
    return TagParser(Dialect(calls=(TAGS,), read=read), tools, prompt)
