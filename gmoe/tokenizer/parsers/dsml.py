"""DeepSeek V3.2 and V4: `<｜DSML｜invoke name="f">` and `<｜DSML｜parameter name="key" string="true">value`."""

import re

from gmoe.tokenizer.parsers.arguments import ToolCall, Tools, Unreadable, read_json
from gmoe.tokenizer.parsers.tags import THINK, Dialect, Parser, TagParser

MARK = "｜DSML｜"
TAGS = tuple((f"<{MARK}{name}>", f"</{MARK}{name}>") for name in ("function_calls", "tool_calls"))
MARKS = (*THINK, MARK)
_INVOKE = re.compile(rf'\s*<{MARK}invoke name="([^"]+)">(.*?)</{MARK}invoke>\s*', re.DOTALL)
_PARAMETER = re.compile(
    rf'\s*<{MARK}parameter name="([^"]+)" string="(true|false)">(.*?)</{MARK}parameter>\s*', re.DOTALL
)


def read(body: str, tools: Tools) -> list[ToolCall]:
    """Every `invoke` between the tags."""
    if _INVOKE.sub("", body) or not body.strip():
        raise Unreadable("something that is no invoke")
    return [ToolCall(match[1], _arguments(match[2])) for match in _INVOKE.finditer(body)]


def _arguments(body: str) -> dict[str, object]:
    if _PARAMETER.sub("", body).strip():
        raise Unreadable("something that is no parameter")
    found = _PARAMETER.finditer(body)
    return {match[1]: match[3] if match[2] == "true" else read_json(match[3]) for match in found}


def parser(tools: Tools, prompt: str) -> Parser:
    """A new parser."""
    return TagParser(Dialect(calls=TAGS, read=read), tools, prompt)
