"""SectionParser: the dialects whose answers are sections, each with a header that says what its body is."""

from abc import ABC, abstractmethod
from typing import ClassVar

from gmoe.tokenizer.parsers.arguments import ToolCall, Unreadable
from gmoe.tokenizer.parsers.tags import Piece, first_of, unsure


class SectionParser(ABC):
    """A header goes up to one of `opens`. Text without a header is content. Calls that cannot be read stay text."""

    begins: ClassVar[tuple[str, ...]]  # what a header may begin with, beside `opens`
    opens: ClassVar[tuple[str, ...]]
    ends: ClassVar[tuple[str, ...]]  # of a body
    breaks: ClassVar[tuple[str, ...]]  # what ends a body too, and begins the next header

    def __init__(self, prompt: str):
        self._held = ""
        self._kind = ""  # of the body that is open; "": a header
        self._body = ""  # what has come of its calls
        header = prompt[prompt.rfind(self.begins[0]) :] if self.begins[0] in prompt else ""
        if header.rstrip().endswith(self.opens):
            self._open(header.rstrip())

    @abstractmethod
    def kind(self, header: str) -> str:
        """Of what follows this header: content, thinking or tool_call."""

    @abstractmethod
    def calls(self, body: str) -> list[ToolCall]:
        """What the body of the last header calls; raises `Unreadable`."""

    def push(self, text: str) -> list[Piece]:
        """What is certain now."""
        self._held += text
        return self._run(last=False)

    def close(self) -> list[Piece]:
        """What was held back."""
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
        marks = (*self.begins, *self.opens, *self.ends)
        if not text.startswith(marks):
            if not last and (not text or any(mark.startswith(text) for mark in marks)):
                return False
            self._kind = "content"
            return True
        if text.startswith(self.ends):
            self._held = text[len(next(end for end in self.ends if text.startswith(end))) :]
            return True
        at, mark = first_of(text, self.opens)
        if not mark:
            if last:  # a header that never became a section
                self._held = ""
            return False
        self._open(text[: at + len(mark)])
        self._held = text[at + len(mark) :]
        return True

    def _open(self, header: str) -> None:
        self._kind, self._body = self.kind(header), ""

    def _bodied(self, pieces: list[Piece], last: bool) -> bool:
        tags = (*self.breaks, *self.ends)
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
            return [("tool_call", call) for call in self.calls(self._body)]
        except Unreadable:
            return [("content", self._body)] if self._body else []
