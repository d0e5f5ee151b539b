"""Mistral: `[TOOL_CALLS]` and a list of objects, or `[TOOL_CALLS]name[ARGS]{...}` for each; thinks in `[THINK]`."""

from gmoe.tokenizer.parsers.arguments import ToolCall, Tools, Unreadable, call_of, read_json
from gmoe.tokenizer.parsers.tags import Dialect, Parser, TagParser

MARK, ARGUMENTS, IDENTITY = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
MARKS = ("[THINK]", "[/THINK]", MARK, ARGUMENTS, IDENTITY)


def read(body: str, tools: Tools) -> list[ToolCall]:
    """All calls to the end of the answer."""
    if body.lstrip().startswith(("[", "{")):
        value = read_json(body)
        return [call_of(one) for one in (value if isinstance(value, list) else [value])]
    calls = []
    for part in body.split(MARK):
        name, mark, text = part.partition(ARGUMENTS)
        if not mark:  # the newest write the object right behind the name
            name, brace, rest = part.partition("{")
            text = brace + rest
        name = name.partition(IDENTITY)[0].strip()
        if not name:
            raise Unreadable("a call has no name")
        calls.append(call_of({"name": name, "arguments": read_json(text)}))
    return calls


def parser(tools: Tools, prompt: str) -> Parser:
    """A new parser."""
    return TagParser(Dialect(think=("[THINK]", "[/THINK]"), calls=((MARK, ""),), read=read), tools, prompt)
