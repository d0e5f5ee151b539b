"""gpt-oss: messages in channels; `analysis` is thinking, `final` is content, one `to=functions.name` is a call."""

import re

from gmoe.tokenizer.parsers.arguments import ToolCall, Tools, call_of, read_json
from gmoe.tokenizer.parsers.sections import SectionParser
from gmoe.tokenizer.parsers.tags import Parser

START, CHANNEL, CONSTRAIN, MESSAGE = "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>"
ENDS = ("<|end|>", "<|call|>", "<|return|>")
MARKS = (START, CHANNEL, CONSTRAIN, MESSAGE, *ENDS)
ANSWER, HEADED = f"{CHANNEL}final{MESSAGE}", True
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_RECIPIENT = re.compile(r"to=(?!assistant\b)([^\s<]+)")


class _Harmony(SectionParser):
    begins, opens, ends, breaks = (START, CHANNEL, "to="), (MESSAGE,), ENDS, (START, CHANNEL)

    def kind(self, header: str) -> str:
        channels, recipient = _CHANNEL.findall(header), _RECIPIENT.search(header)
        self._name = recipient[1].removeprefix("functions.") if recipient else ""
        return "tool_call" if recipient else "thinking" if channels[-1:] == ["analysis"] else "content"

    def calls(self, body: str) -> list[ToolCall]:
        return [call_of({"name": self._name, "arguments": read_json(body or "{}")})]


def parser(tools: Tools, prompt: str) -> Parser:
    """A new parser."""
    return _Harmony(prompt)
