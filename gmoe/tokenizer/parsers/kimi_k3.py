"""Kimi K3: everything between `<|open|>name key="value"<|sep|>` and `<|close|>name<|sep|>`."""

import re

from gmoe.tokenizer.parsers.arguments import ToolCall, Tools, Unreadable, call_of, read_json
from gmoe.tokenizer.parsers.tags import Dialect, Parser, TagParser

OPEN, CLOSE, SEPARATOR = "<|open|>", "<|close|>", "<|sep|>"
MARKS = (OPEN, CLOSE, SEPARATOR)


def _tags(name: str) -> tuple[str, str]:
    return f"{OPEN}{name}{SEPARATOR}", f"{CLOSE}{name}{SEPARATOR}"


def _element(name: str) -> re.Pattern[str]:
    begin, (_, end) = f"{OPEN}{name}", _tags(name)
    return re.compile(rf"\s*{re.escape(begin)}([^<]*){re.escape(SEPARATOR)}(.*?){re.escape(end)}\s*", re.DOTALL)


THINKING, RESPONSE, TOOLS = _tags("think"), _tags("response"), _tags("tools")
_CALL, _ARGUMENT, _JSON = _element("call"), _element("argument"), _element("json")
_ATTRIBUTE = re.compile(r'(\w+)="([^"]*)"')


def read(body: str, tools: Tools) -> list[ToolCall]:
    """Every call between the tags."""
    if _CALL.sub("", body) or not body.strip():
        raise Unreadable("something that is no call")
    return [_call(_attributes(match[1]).get("tool"), match[2]) for match in _CALL.finditer(body)]


def _call(name: str | None, body: str) -> ToolCall:
    if whole := _JSON.fullmatch(body):
        return call_of({"name": name, "arguments": read_json(whole[2])})
    if _ARGUMENT.sub("", body).strip():
        raise Unreadable("something that is no argument")
    arguments = {}
    for match in _ARGUMENT.finditer(body):
        said = _attributes(match[1])
        if "key" not in said:
            raise Unreadable("an argument has no name")
        arguments[said["key"]] = match[2] if said.get("type") == "string" else read_json(match[2])
    return call_of({"name": name, "arguments": arguments})


def _attributes(text: str) -> dict[str, str]:
    return {match[1]: match[2].replace("&quot;", '"').replace("&amp;", "&") for match in _ATTRIBUTE.finditer(text)}


def parser(tools: Tools, prompt: str) -> Parser:
    """A new parser."""
    end = _tags("message")[1]
    dialect = Dialect(THINKING, RESPONSE, end, calls=(TOOLS,), wrap_ends_thinking=True, read=read)
    return TagParser(dialect, tools, prompt)
