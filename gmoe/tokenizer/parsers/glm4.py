"""GLM-4.5 to 4.7: `<tool_call>name` and pairs of `<arg_key>` and `<arg_value>`."""

import re

from gmoe.tokenizer.parsers.arguments import ToolCall, Tools, Unreadable, typed
from gmoe.tokenizer.parsers.tags import THINK, Dialect, Parser, TagParser

TAGS = ("<tool_call>", "</tool_call>")
MARKS = (*THINK, *TAGS, "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")
_PAIR = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)


def read(body: str, tools: Tools) -> list[ToolCall]:
    """One call."""
    name, _, _ = body.partition("<arg_key>")
    name = name.strip()
    if not name or "\n" in name or "<" in name or _PAIR.sub("", body).strip() != name:
        raise Unreadable("no name, or something that is no pair")
    pairs = [(match[1].strip(), match[2]) for match in _PAIR.finditer(body)]
    return [ToolCall(name, {key: typed(tools, name, key, text) for key, text in pairs})]


def parser(tools: Tools, prompt: str) -> Parser:
    """A new parser."""
    return TagParser(Dialect(calls=(TAGS,), read=read), tools, prompt)
