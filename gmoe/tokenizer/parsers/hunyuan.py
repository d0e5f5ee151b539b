"""Hunyuan 3: GLM's pairs of keys and values, with names of the tags that are its own."""

import re

from gmoe.tokenizer.parsers import glm4
from gmoe.tokenizer.parsers.arguments import ToolCall, Tools, Unreadable
from gmoe.tokenizer.parsers.tags import Dialect, Parser, TagParser

OWN = ":opensource"
THINKING = (f"<think{OWN}>", f"</think{OWN}>")
TAGS = (f"<tool_calls{OWN}>", f"</tool_calls{OWN}>")
NAMES = ("tool_call", "tool_sep", "arg_key", "arg_value")
MARKS = (*THINKING, *TAGS, *(f"<{slash}{name}{OWN}>" for name in NAMES for slash in ("", "/")))
_CALL = re.compile(rf"\s*<tool_call{OWN}>(.*?)<tool_sep{OWN}>(.*?)</tool_call{OWN}>\s*", re.DOTALL)
_TAG = re.compile(rf"(</?arg_(?:key|value)){OWN}>")


def read(body: str, tools: Tools) -> list[ToolCall]:
    """Every call between the tags."""
    if _CALL.sub("", body) or not body.strip():
        raise Unreadable("something that is no call")
    calls = (match[1] + _TAG.sub(r"\1>", match[2]) for match in _CALL.finditer(body))
    return [call for text in calls for call in glm4.read(text, tools)]


def parser(tools: Tools, prompt: str) -> Parser:
    """A new parser."""
    return TagParser(Dialect(THINKING, calls=(TAGS,), read=read), tools, prompt)
