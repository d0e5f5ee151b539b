"""MiniMax-M2: `<minimax:tool_call><invoke name="f"><parameter name="key">value</parameter></invoke>`."""

import re

from gmoe.tokenizer.parsers.arguments import ToolCall, Tools, Unreadable, typed
from gmoe.tokenizer.parsers.tags import THINK, Dialect, Parser, TagParser

TAGS = ("<minimax:tool_call>", "</minimax:tool_call>")
MARKS = (*THINK, *TAGS)
_INVOKE = re.compile(r"""<invoke name=["']?([^"'>]+)["']?>(.*?)</invoke>""", re.DOTALL)
_PARAMETER = re.compile(r"""<parameter name=["']?([^"'>]+)["']?>(.*?)</parameter>""", re.DOTALL)


def read(body: str, tools: Tools) -> list[ToolCall]:
    """Every `invoke` between the tags."""
    if _INVOKE.sub("", body).strip() or not _INVOKE.search(body):
        raise Unreadable("something that is no invoke")
    calls = []
    for invoke in _INVOKE.finditer(body):
        if _PARAMETER.sub("", invoke[2]).strip():
            raise Unreadable("something that is no parameter")
        pairs = [(match[1], match[2].strip("\n")) for match in _PARAMETER.finditer(invoke[2])]
        calls.append(ToolCall(invoke[1], {key: typed(tools, invoke[1], key, text) for key, text in pairs}))
    return calls


def parser(tools: Tools, prompt: str) -> Parser:
    """A new parser."""
    return TagParser(Dialect(calls=(TAGS,), read=read), tools, prompt)
