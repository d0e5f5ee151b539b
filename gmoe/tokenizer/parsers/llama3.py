"""Llama 3 and 4: an answer that is `{"name": ..., "parameters": {...}}` is a call, with or without python marks."""

from gmoe.tokenizer.parsers.arguments import ToolCall, Tools, Unreadable, call_of, names_of, read_values
from gmoe.tokenizer.parsers.tags import Parser, Piece

BEGINS, END = ("<|python_tag|>", "<|python_start|>"), "<|python_end|>"
MARKS = (*BEGINS, END)


class _Llama3:
    """What begins like a call is held to the end; it is one if it names a tool of the request."""

    def __init__(self, tools: Tools):
        self._tools = tools
        self._held = ""
        self._content = not tools

    def push(self, text: str) -> list[Piece]:
        self._held += text
        begin = self._held.lstrip()
        waits = not begin or begin.startswith(("{", *BEGINS)) or any(mark.startswith(begin) for mark in BEGINS)
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
        text = self._held
        for mark in MARKS:
            text = text.replace(mark, "", 1)
        calls = [call_of(value) for value in read_values(text, between=";")]
        if not calls or not {call.name for call in calls} <= names_of(self._tools):
            raise Unreadable("no tool of this request")
        return calls

    def _flush(self) -> list[Piece]:
        text, self._held = self._held, ""
        return [("content", text)] if text else []


def parser(tools: Tools, prompt: str) -> Parser:
    """A new parser."""
    return _Llama3(tools)
