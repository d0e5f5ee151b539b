"""gpt-oss: messages in channels; `analysis` is thinking, `final` is content, one `to=functions.name` is a call."""

import re

from gmoe.tokenizer.parsers.arguments import Tools, Unreadable, call_of, read_json
from gmoe.tokenizer.parsers.tags import Parser, Piece, first_of, unsure

START, CHANNEL, CONSTRAIN, MESSAGE = "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>"
ENDS = ("<|end|>", "<|call|>", "<|return|>")
MARKS = (START, CHANNEL, CONSTRAIN, MESSAGE, *ENDS)
ANSWER = f"{CHANNEL}final{MESSAGE}"
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_RECIPIENT = re.compile(r"to=(?!assistant\b)([^\s<]+)")


class _Harmony:
    """A header, up to `<|message|>`, says what the body is. Text without a header is content."""

    def __init__(self, prompt: str):
        self._held = ""
        self._kind = ""  # of the body that is open; "": a header
        self._name = ""  # of the tool that the open body calls
        self._body = ""  # what has come of that call
        header = prompt[prompt.rfind(START) :] if START in prompt else ""
        if header.rstrip().endswith(MESSAGE):
            self._open(header)

    def push(self, text: str) -> list[Piece]:
        self._held += text
        return self._run(last=False)

    def close(self) -> list[Piece]:
        pieces = self._run(last=True)
        if self._kind == "tool_call":
            pieces += self._end()
        return pieces

    def _run(self, last: bool) -> list[Piece]:
        pieces: list[Piece] = []
        while self._held and (self._bodied(pieces, last) if self._kind else self._header(last)):
            pass
        return pieces

    def _header(self, last: bool) -> bool:
        text = self._held.lstrip()
        marks = (START, CHANNEL, MESSAGE, "to=", *ENDS)
        if not text.startswith(marks):
            if not last and (not text or any(mark.startswith(text) for mark in marks)):
                return False
            self._kind = "content"
            return True
        if text.startswith(ENDS):
            self._held = text[len(next(end for end in ENDS if text.startswith(end))) :]
            return True
        header, mark, rest = text.partition(MESSAGE)
        if not mark:
            if last:  # a header that never became a message
                self._held = ""
            return False
        self._open(header)
        self._held = rest
        return True

    def _open(self, header: str) -> None:
        channels, recipient = _CHANNEL.findall(header), _RECIPIENT.search(header)
        self._name = recipient[1].removeprefix("functions.") if recipient else ""
        self._kind = "tool_call" if recipient else "thinking" if channels[-1:] == ["analysis"] else "content"
        self._body = ""

    def _bodied(self, pieces: list[Piece], last: bool) -> bool:
        tags = (START, CHANNEL, *ENDS)
        at, tag = first_of(self._held, tags)
        if not tag and not last:
            at = len(self._held) - unsure(self._held, tags)
        text, self._held = self._held[:at], self._held[at:]
        if self._kind == "tool_call":
            self._body += text
        elif text:
            pieces.append((self._kind, text))
        if tag:
            if self._kind == "tool_call":
                pieces += self._end()
            self._kind = ""
        return bool(tag)

    def _end(self) -> list[Piece]:
        self._kind = ""
        try:
            return [("tool_call", call_of({"name": self._name, "arguments": read_json(self._body or "{}")}))]
        except Unreadable:
            return [("content", self._body)] if self._body else []


def parser(tools: Tools, prompt: str) -> Parser:
    """A new parser."""
    return _Harmony(prompt)
