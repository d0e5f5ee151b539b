"""Gemma 4: thinking in the channel `thought`, as often as it likes; `call:name{key:value}` with texts between marks."""

import json
import re

from gmoe.tokenizer.parsers.arguments import ToolCall, Tools, Unfinished, Unreadable, call_of, read_json
from gmoe.tokenizer.parsers.tags import Dialect, Parser, Piece, TagParser

CHANNEL, END, NAME = "<|channel>", "<channel|>", "thought"
TAGS, QUOTE = ("<|tool_call>", "<tool_call|>"), '<|"|>'
MARKS = (CHANNEL, END, *TAGS, QUOTE)
ANSWER = END
_CALL = re.compile(r'\s*call:\s*([^\s{}"]+)\s*(\{.*\})\s*', re.DOTALL)
_PART = re.compile(r"""("(?:\\.|[^"\\])*")|([^\s{}\[\],:"][^{}\[\],:"]*)(:?)""", re.DOTALL)
_WORDS = {"none": "null", "null": "null", "true": "true", "false": "false"}


def read(body: str, tools: Tools) -> list[ToolCall]:
    """One call."""
    return read_quoted(body, QUOTE)


def read_quoted(body: str, quote: str) -> list[ToolCall]:
    """One call whose texts stand between `quote` and `quote`; keys need no quotes."""
    parts = body.split(quote)
    if len(parts) % 2 == 0:
        raise Unfinished("a text does not end")
    parts[1::2] = [json.dumps(text) for text in parts[1::2]]
    call = _CALL.fullmatch("".join(parts))
    if not call:
        raise Unreadable("no call begins here")
    try:
        return [call_of({"name": call[1], "arguments": read_json(_PART.sub(_json, call[2]))})]
    except Unfinished as error:  # no text of the model's goes on behind the closing tag
        raise Unreadable(str(error)) from None


def _json(part: re.Match[str]) -> str:
    if text := part[1]:
        return str(text)
    word = part[2].rstrip()
    return f"{json.dumps(word)}:" if part[3] else _WORDS.get(word.lower(), word)


class _Gemma4(TagParser):
    """A channel may open anywhere; a mark that opens or closes none is dropped."""

    def __init__(self, dialect: Dialect, tools: Tools, prompt: str):
        super().__init__(dialect, tools, prompt)
        self._state = "thinking" if self._state == "thinking" else "content"

    def _content(self, pieces: list[Piece], last: bool) -> bool:
        tag = self._emit(pieces, "content", [CHANNEL, END, *(begin for begin, _ in self._calls)], last)
        if tag == CHANNEL:
            self._state = "channel"
        elif tag == END:
            self._enter("content", self._held[len(END) :], self._trim)
        return bool(tag)

    def _channel(self, pieces: list[Piece], last: bool) -> bool:
        """Behind a mark that opens a channel, which is still held."""
        rest = self._held[len(CHANNEL) :]
        if rest.startswith(NAME):
            self._enter("thinking", rest[len(NAME) :], trim=True)
        elif NAME.startswith(rest) and not last:
            return False
        else:
            self._enter("content", rest, self._trim)
        return True


def parser(tools: Tools, prompt: str) -> Parser:
    """A new parser; what stands in the thinking calls nothing."""
    think = (CHANNEL + NAME, END)
    return _Gemma4(Dialect(think=think, calls=(TAGS,), calls_end_thinking=False, read=read), tools, prompt)
