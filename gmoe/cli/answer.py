"""An answer on its way out: streamed text, wrapped words on a terminal, and the figures of `--verbose`."""

import json
import math
import shutil
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from types import FrameType
from typing import Any, Protocol, cast
from unicodedata import east_asian_width

import click

from gmoe.cli.errors import interrupted
from gmoe.cli.progress import waiting
from gmoe.engine.sampling import SamplingParams
from gmoe.experts.calibration import shares
from gmoe.tokenizer.parsers.tags import Parser, Piece

Write = Callable[[str], None]
THINKING = "Thinking...\n"


class Event(Protocol):
    """What is read of a `TextEvent`."""

    @property
    def text(self) -> str: ...


class Speaker(Protocol):
    """What is used of an `LLM`."""

    @property
    def stats(self) -> Mapping[str, Any]: ...

    def generate(self, prompt: str, params: SamplingParams | None = None) -> Iterator[Event]: ...

    def chat(
        self, messages: Sequence[Mapping[str, Any]], params: SamplingParams | None = None, **template: Any
    ) -> Iterator[Event]: ...


def write(text: str) -> None:
    """To standard output, at once."""
    click.echo(text, nl=False)


def messages_of(system: str | None, before: Sequence[Mapping[str, Any]], text: str) -> list[Mapping[str, Any]]:
    """The conversation that a user's `text` ends."""
    head = [{"role": "system", "content": system}] if system else []
    return [*head, *before, {"role": "user", "content": text}]


class Wrapped:
    """Writes text with lines broken between words and wide letters; a word wider than a line is left whole."""

    def __init__(self, write: Write, width: int | None = None):
        self._write, self._width = write, width
        self._column, self._word = 0, ""

    def __call__(self, text: str) -> None:
        """Write what is whole; the last word waits for its end."""
        for character in text:
            if character.isspace():
                self.end()
                self._space(character)
            else:
                self._word += character
                if _cells(character) > 1:  # scripts without spaces break anywhere, and are not held back
                    self.end()

    def end(self) -> None:
        """Write the word that waits."""
        width = self._width or shutil.get_terminal_size().columns - 1
        cells = _cells(self._word)
        if self._column and self._column + cells > width:
            self._write("\n")
            self._column = 0
        self._write(self._word)
        self._column += cells
        self._word = ""

    def _space(self, character: str) -> None:
        self._write(character)
        self._column = 0 if character == "\n" else self._column + 1


def _cells(text: str) -> int:
    """The columns that a terminal gives it: two for a wide letter."""
    return sum(2 if east_asian_width(character) in "WF" else 1 for character in text)


def spoken(
    events: Iterator[Event],
    write: Write,
    wrap: bool = False,
    hide_thinking: bool = False,
    heard: Callable[[Event], None] = lambda event: None,
) -> Generator[str, None, None]:
    """Write each piece as it comes and give on what is no thinking; closing ends the answer in the model too."""
    out = Wrapped(write) if wrap else None
    shown = _Shown(getattr(events, "parser", None), out or write, hide_thinking)
    with closing(cast(Generator[Event, None, None], events)), interrupts() as check:
        with waiting("reading the prompt"):
            event = next(events, None)
        while event is not None:
            heard(event)
            yield shown.push(event.text)
            check()
            event = next(events, None)
    yield shown.close()
    if out:
        out.end()


def probabilities(events: Iterable[Any], tokenizer: Any) -> list[str]:
    """A line a token where they were asked for: what was chosen, how probable it was, and the likeliest."""

    def said(id: int, logprob: float) -> str:
        raw = tokenizer.token_bytes(id) or tokenizer.text(id).encode()
        return f"{raw.decode('utf-8', 'replace')!r} {math.exp(logprob):.1%}"

    lines = []
    for event in events:
        if event.logprobs is not None and event.token_id is not None:
            top = ", ".join(said(*pair) for pair in event.logprobs.top)
            lines.append(said(event.token_id, event.logprobs.chosen) + (f" of {top}" if top else ""))
    return lines


@contextmanager
def interrupts() -> Iterator[Callable[[], None]]:
    """What it gives raises KeyboardInterrupt where one has come: inside a destructor Python would have dropped it."""
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        signal.default_int_handler(number, frame)

    def check() -> None:
        if came:
            raise KeyboardInterrupt

    ours = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    ours = ours and before in (signal.default_int_handler, interrupted)
    if ours:
        signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)


class _Shown:
    """Writes thinking between two lines of its own, and tool calls as JSON."""

    def __init__(self, parser: Parser | None, write: Write, hide_thinking: bool):
        self._parser, self._write, self._hide = parser, write, hide_thinking
        self._thinks = False

    def push(self, text: str) -> str:
        """The content of what was written now."""
        if self._parser is None:
            self._write(text)
            return text
        return "".join(map(self._piece, self._parser.push(text)))

    def close(self) -> str:
        content = "".join(map(self._piece, self._parser.close())) if self._parser else ""
        self._done()
        return content

    def _piece(self, piece: Piece) -> str:
        kind, payload = piece
        if kind == "thinking":
            if not self._hide:
                self._write(f"{'' if self._thinks else THINKING}{payload}")
                self._thinks = True
            return ""
        self._done()
        if not isinstance(payload, str):
            call = {"name": payload.name, "arguments": payload.arguments}
            payload = json.dumps(call, ensure_ascii=False) + "\n"
        self._write(payload)
        return payload

    def _done(self) -> None:
        if self._thinks:
            self._write("\n...done thinking.\n\n")
        self._thinks = False


def can_think(llm: Any) -> bool:
    """Whether the model's template speaks of thinking."""
    from gmoe.server.models import capabilities

    return "thinking" in capabilities(llm.file.metadata, llm.modelfile)


class Figures:
    """What one answer took: the differences of the model's counters between `__init__` and `lines`."""

    def __init__(self, llm: Speaker, load_seconds: float):
        self._llm, self._load = llm, load_seconds
        self._before = dict(llm.stats)
        self._began = time.perf_counter()

    def lines(self) -> Iterator[str]:
        """Ollama's figures, then every counter of the experts."""
        now = self._llm.stats
        spent = {name: difference(now[name], self._before.get(name)) for name in now}
        if "routed" in spent:  # shares do not subtract: those of this answer alone
            spent["shares"] = shares(spent)
            before, changed = (sum(n for name, n in s["shares"].items() if name != "cpu") for s in (now, spent))
            if "estimated_kld" in now:
                spent["estimated_kld"] = now["estimated_kld"] * changed / before if before else 0.0
        yield _line("total duration", _seconds(time.perf_counter() - self._began + self._load))
        yield _line("load duration", _seconds(self._load))
        for title, count, seconds in (
            ("prompt eval", spent.pop("prompt_tokens", 0), spent.pop("prompt_seconds", 0.0)),
            ("eval", spent.pop("generated_tokens", 0), spent.pop("decode_seconds", 0.0)),
        ):
            yield _line(f"{title} count", f"{count} token(s)")
            yield _line(f"{title} duration", _seconds(seconds))
            yield _line(f"{title} rate", f"{count / seconds:.2f} tokens/s" if seconds else "-")
        for name, value in spent.items():
            yield from _counters(name.replace("_", " "), value)


def difference(now: Any, before: Any) -> Any:
    """Numbers that grew, by how much; mappings entry by entry; anything else as it is now."""
    if isinstance(now, Mapping):
        earlier = before if isinstance(before, Mapping) else {}
        return {name: difference(value, earlier.get(name)) for name, value in now.items()}
    if isinstance(now, int | float) and isinstance(before, int | float):
        return now - before
    return now


def _counters(title: str, value: Any) -> Iterator[str]:
    """A mapping of numbers is a line, a mapping of mappings a line each."""
    if not isinstance(value, Mapping):
        yield _line(title, _number(value))
        return
    flat = {name: entry for name, entry in value.items() if not isinstance(entry, Mapping)}
    if flat:
        yield _line(title, ", ".join(f"{str(name).replace('_', ' ')} {_number(entry)}" for name, entry in flat.items()))
    for name, entry in value.items():
        if isinstance(entry, Mapping):
            yield from _counters(f"{title} {name}", entry)


def _line(title: str, value: str) -> str:
    return f"{title + ':':<21} {value}"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.1f} ms"
