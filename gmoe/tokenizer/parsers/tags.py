"""TagParser: the dialects whose thinking and tool calls stand between tags."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from gmoe.tokenizer.parsers.arguments import ToolCall, Tools, Unfinished, Unreadable

Piece = tuple[str, str | ToolCall]  # ("content", text), ("thinking", text) or ("tool_call", call)
THINK = ("<think>", "</think>")


class Parser(Protocol):
    """Streamed text into pieces; what was pushed and what it gives do not depend on where the text was cut."""

    def push(self, text: str) -> list[Piece]:
        """What is certain now; never a part of a tag."""
        ...

    def close(self) -> list[Piece]:
        """What was held back, when the answer has ended."""
        ...


Read = Callable[[str, Tools], list[ToolCall]]  # the text between the tags -> calls; or `Unreadable`


@dataclass(frozen=True)
class Dialect:
    """`think`: the tags around thinking; `calls`: the tags around tool calls, "" where these go on to the end.

    `wrap`: tags that may stand around all that is content, and are dropped; `end`: the tag behind which nothing counts;
    `stray`: one that is dropped from content where there are tools; `calls_end_thinking`, `wrap_ends_thinking`: whether
    a call, and content, count where thinking has not been closed.
    """

    think: tuple[str, str] = THINK
    wrap: tuple[str, str] = ("", "")
    end: str = ""
    stray: str = ""
    calls: tuple[tuple[str, str], ...] = ()
    calls_end_thinking: bool = True
    wrap_ends_thinking: bool = False
    read: Read = lambda body, tools: []


class TagParser:
    """Thinking begins the answer, or has begun where the prompt ends with its tag; calls count where tools are given.

    Space at the edges of thinking and around tool calls is dropped. A call that cannot be read stays text.
    """

    def __init__(self, dialect: Dialect, tools: Tools = (), prompt: str = ""):
        self._dialect, self._tools = dialect, tools
        self._calls = dialect.calls if tools else ()
        self._held, prompt = "", prompt.rstrip()
        self._wrapped = dialect.wrap[0] != "" and prompt.endswith(dialect.wrap[0])  # whether the content is within
        self._state = "thinking" if prompt.endswith(dialect.think[0]) else "content" if self._wrapped else "start"
        self._trim = self._state != "start"  # whether the space that comes next is dropped
        self._tag: tuple[str, str] = ("", "")  # those of the call that is open
        self._before = ("content", "")  # what it interrupted, and the space between
        self._tried = 0  # where in the held text the search for the end of the call goes on

    def push(self, text: str) -> list[Piece]:
        """What is certain now."""
        self._held += text
        return self._run(last=False)

    def close(self) -> list[Piece]:
        """What was held back."""
        return self._run(last=True)

    def _run(self, last: bool) -> list[Piece]:
        pieces: list[Piece] = []
        while self._held and getattr(self, f"_{self._state}")(pieces, last):
            pass
        return _joined(pieces)

    def _start(self, pieces: list[Piece], last: bool) -> bool:
        """Before the first letter."""
        text, tag = self._held.lstrip(), self._dialect.think[0]
        if text.startswith(tag):
            self._enter("thinking", text[len(tag) :], trim=True)
            return True
        if tag.startswith(text) and not last:
            return False
        self._state = "opening"
        return True

    def _opening(self, pieces: list[Piece], last: bool) -> bool:
        """Before the first letter of content."""
        text, tag = self._held.lstrip(), self._dialect.wrap[0]
        self._wrapped = tag != "" and text.startswith(tag)
        if tag and not self._wrapped and tag.startswith(text) and not last:
            return False
        rest, trim = (text[len(tag) :], True) if self._wrapped else (self._held, self._trim)
        self._enter("content", rest, trim)
        return True

    def _thinking(self, pieces: list[Piece], last: bool) -> bool:
        end = self._dialect.think[1]
        calls = self._calls if self._dialect.calls_end_thinking else ()
        opening = self._dialect.wrap[:1] if self._dialect.wrap_ends_thinking else ()
        tag = self._emit(pieces, "thinking", [end, *(begin for begin, _ in calls), *opening], last)
        if tag == end or tag in opening:
            self._enter("opening", self._held[len(end) if tag == end else 0 :], trim=True)
        return bool(tag)

    def _content(self, pieces: list[Piece], last: bool) -> bool:
        end, over = self._dialect.wrap[1], self._dialect.end
        stray = self._dialect.stray if self._tools else ""
        tags = [*(begin for begin, _ in self._calls), *([end] * self._wrapped), over, stray]
        tag = self._emit(pieces, "content", [tag for tag in tags if tag], last)
        if tag and tag == over:
            self._enter("over", "", trim=True)
        elif tag and tag in (end, stray):
            self._wrapped = self._wrapped and tag != end
            self._enter("content", self._held[len(tag) :], trim=True)
        return bool(tag)

    def _over(self, pieces: list[Piece], last: bool) -> bool:
        """Behind the answer."""
        self._held = ""
        return False

    def _call(self, pieces: list[Piece], last: bool) -> bool:
        """Within a call, whose opening tag is still held."""
        begin, end = self._tag
        at = self._held.find(end, self._tried) if end else -1
        if at < 0 and not last:
            self._tried = max(len(begin), len(self._held) - len(end) + 1)
            return False
        stop = len(self._held) if at < 0 else at
        try:
            calls = self._dialect.read(self._held[len(begin) : stop], self._tools)
        except Unfinished:
            if at >= 0:
                self._tried = at + len(end)
                return True
            calls = []
        except Unreadable:
            calls = []
        stop = stop if at < 0 else stop + len(end)
        kind, space = self._before
        if not calls and not end and kind == "thinking" and (closed := self._held.find(self._dialect.think[1])) >= 0:
            stop = closed  # what it said of calls was a thought
        pieces += [("tool_call", call) for call in calls] or [(kind, space + self._held[:stop])]
        self._enter("content" if calls else kind, self._held[stop:], trim=bool(calls))
        return True

    def _enter(self, state: str, rest: str, trim: bool) -> None:
        self._state, self._held, self._trim = state, rest, trim

    def _emit(self, pieces: list[Piece], kind: str, tags: Sequence[str], last: bool) -> str:
        """Give out what comes before the first of `tags`, which is returned; or what cannot be part of one."""
        if self._trim:
            self._held = self._held.lstrip()
        at, tag = first_of(self._held, tags)
        if tag:
            text = self._held[:at].rstrip()
        elif not tags:
            text = self._held
        elif last:
            at, text = len(self._held), self._held if kind == "content" else self._held.rstrip()
        else:
            at = len(self._held) - unsure(self._held, tags)
            text = self._held[:at].rstrip()
            at = len(text)
        if text:
            pieces.append((kind, text))
            self._trim = False
        if tag in (begin for begin, _ in self._calls):
            self._state, self._tried, self._before = "call", len(tag), (kind, self._held[len(text) : at])
            self._tag = next(pair for pair in self._calls if pair[0] == tag)
        self._held = self._held[at:]
        return tag


def first_of(text: str, tags: Sequence[str]) -> tuple[int, str]:
    """Where the first of `tags` stands and which it is; "" where there is none."""
    found = [(at, -len(tag), tag) for tag in tags if tag and (at := text.find(tag)) >= 0]
    at, _, tag = min(found, default=(len(text), 0, ""))
    return at, tag


def unsure(text: str, tags: Sequence[str]) -> int:
    """How many letters at the end of `text` may be the beginning of a tag."""
    return max((n for tag in tags for n in range(1, len(tag)) if text.endswith(tag[:n])), default=0)


def _joined(pieces: list[Piece]) -> list[Piece]:
    """Neighbours of one kind as one piece."""
    joined: list[Piece] = []
    for kind, payload in pieces:
        if joined and joined[-1][0] == kind and isinstance(payload, str):
            joined[-1] = (kind, f"{joined[-1][1]}{payload}")
        else:
            joined.append((kind, payload))
    return joined
