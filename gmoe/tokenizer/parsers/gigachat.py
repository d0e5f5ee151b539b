"""GigaChat 3 (a message of the role `function call`) and 3.1 (its own mark): one JSON object to the end."""

from gmoe.tokenizer.parsers.arguments import ToolCall, Tools, call_of, read_json
from gmoe.tokenizer.parsers.tags import Dialect, Parser, TagParser

TAGS = (("function call<|role_sep|>\n", ""), ("<|function_call|>", ""))
MARKS = ("<|role_sep|>", "<|function_call|>")


def read(body: str, tools: Tools) -> list[ToolCall]:
    """One call."""
    return [call_of(read_json(body))]


def parser(tools: Tools, prompt: str) -> Parser:
    """A new parser."""
    return TagParser(Dialect(calls=TAGS, read=read), tools, prompt)
