"""Cohere's North and Command models that mark text, thinking and actions; an action is a JSON list."""

from gmoe.tokenizer.parsers.arguments import ToolCall, Tools, Unreadable, call_of, read_json
from gmoe.tokenizer.parsers.tags import Dialect, Parser, TagParser

THINKING = ("<|START_THINKING|>", "<|END_THINKING|>")
TEXT = ("<|START_TEXT|>", "<|END_TEXT|>")
TAGS = ("<|START_ACTION|>", "<|END_ACTION|>")
MARKS = (*THINKING, *TEXT, *TAGS)


def read(body: str, tools: Tools) -> list[ToolCall]:
    """Every call of the list; its numbers are places in the conversation, which the template counts itself."""
    calls = read_json(body)
    if not isinstance(calls, list) or not calls or not all(isinstance(call, dict) for call in calls):
        raise Unreadable("no list of calls")
    return [call_of({"name": call.get("tool_name"), "arguments": call.get("parameters")}) for call in calls]


def parser(tools: Tools, prompt: str) -> Parser:
    """A new parser."""
    dialect = Dialect(THINKING, wrap=TEXT, calls=(TAGS,), wrap_ends_thinking=True, read=read)
    return TagParser(dialect, tools, prompt)
