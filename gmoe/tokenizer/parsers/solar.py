"""Solar Open: thinking, content and tool calls as sections of their own, each up to its end."""

from gmoe.tokenizer.parsers.arguments import ToolCall, Tools, Unreadable, call_of, read_json
from gmoe.tokenizer.parsers.sections import SectionParser
from gmoe.tokenizer.parsers.tags import Parser

BEGIN, THINK, CONTENT, CALLS = "<|begin|>", "<|think|>", "<|content|>", "<|tool_calls|>"
KINDS = {THINK: "thinking", CONTENT: "content", CALLS: "tool_call"}
ENDS = ("<|end|>", "<|calls|>", "<|flush|>")
CALL, NAME, ARGUMENTS, CALLED = "<|tool_call:begin|>", "<|tool_call:name|>", "<|tool_call:args|>", "<|tool_call:end|>"
MARKS = (BEGIN, *KINDS, *ENDS, CALL, NAME, ARGUMENTS, CALLED)
ANSWER, HEADED = CONTENT, True


class _Solar(SectionParser):
    begins, opens, ends, breaks = (BEGIN,), tuple(KINDS), ENDS, (BEGIN, *KINDS)

    def kind(self, header: str) -> str:
        return next(kind for mark, kind in KINDS.items() if header.endswith(mark))

    def calls(self, body: str) -> list[ToolCall]:
        first, *parts = body.split(CALL)
        if first.strip() or not parts:
            raise Unreadable("no call begins here")
        calls = []
        for part in parts:
            id, _, call = part.strip().removesuffix(CALLED).partition(NAME)
            name, _, text = call.partition(ARGUMENTS)
            if not name.strip():
                raise Unreadable("a call has no name")
            calls.append(call_of({"name": name.strip(), "arguments": read_json(text or "{}")})._replace(id=id.strip()))
        return calls


def parser(tools: Tools, prompt: str) -> Parser:
    """A new parser."""
    return _Solar(prompt)
