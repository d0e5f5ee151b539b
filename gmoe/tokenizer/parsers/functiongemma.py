"""FunctionGemma: `call:name{key:value}` as of Gemma 4, between tags and quotes of its own; it does not think."""

from gmoe.tokenizer.parsers.arguments import ToolCall, Tools
from gmoe.tokenizer.parsers.gemma4 import read_quoted
from gmoe.tokenizer.parsers.tags import Dialect, Parser, TagParser

TAGS, QUOTE = ("<start_function_call>", "<end_function_call>"), "<escape>"
MARKS = (*TAGS, QUOTE)


def read(body: str, tools: Tools) -> list[ToolCall]:
    """One call."""
    return read_quoted(body, QUOTE)


def parser(tools: Tools, prompt: str) -> Parser:
    """A new parser."""
    return TagParser(Dialect(calls=(TAGS,), read=read), tools, prompt)
