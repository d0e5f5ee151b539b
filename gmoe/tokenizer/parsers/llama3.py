"""Llama 3: an answer that is `{"name": ..., "parameters": {...}}` is a call, with or without `<|python_tag|>`."""

from gmoe.tokenizer.parsers.arguments import ToolCall, Tools, Unreadable, call_of, names_of, read_values
from gmoe.tokenizer.parsers.tags import Parser, Piece

MARK = "<|python_tag|>"
MARKS = (MARK,)


class _Llama3:
    """What begins like a call is held to the end; it is one if it names a tool of the request."""

    def __init__(self, tools: Tools):
        self._tools = tools
        self._held = ""
        self._content = not tools

    def push(self, text: str) -> list[Piece]:
        self._held += text
        begin = self._held.lstrip()
        waits = not begin or begin.startswith(("{", MARK)) or MARK.startswith(begin)
        if waits and not self._content:
            return []
        self._content = True
        return self._flush()

    def close(self) -> list[Piece]:
        if not self._content and self._held.strip():
            try:
                return [("tool_call", call) for call in self._calls()]
            except Unreadable:
                pass
        return self._flush()

    def _calls(self) -> list[ToolCall]:
        calls = [call_of(value) for value in read_values(self._held.replace(MARK, "", 1), between=";")]
        if not calls or not {call.name for call in calls} <= names_of(self._tools):
            raise Unreadable("no tool of this request")
        return calls

    def _flush(self) -> list[Piece]:
        text, self._held = self._held, ""
        return [("content", text)] if text else []


def parser(tools: Tools, prompt: str) -> Parser:
    """A new parser."""
    return _Llama3(tools)
