"""Errors that a user can cause: one sentence on standard error, no traceback, and a status that says which kind."""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

import click

INTERRUPTED = 130  # as a shell reports a program that SIGINT ended
IMPORTING = "<frozen importlib._bootstrap>"
LONG = 800  # characters
BROKEN_PIPE = 141  # likewise SIGPIPE: whoever read the output has gone, and nobody is told


class Group(click.Group):
    """A group whose commands end with `Error: one sentence` and status 1; click itself gives 2 for wrong usage."""

    def main(self, *args: Any, **given: Any) -> Any:
        """Run; what was closed by whoever began the process takes all and says nothing."""
        with ExitStack() as stack:
            for name in ("stdin", "stdout", "stderr"):
                if getattr(sys, name) is None:
                    setattr(sys, name, stack.enter_context(open(os.devnull, "r" if name == "stdin" else "w")))
            try:
                return super().main(*args, **given)
            except OSError as error:  # of --help
                _let_go()
                sys.exit(say(sentence(error)))

    def invoke(self, ctx: click.Context) -> Any:
        """Call the command; its exceptions become statuses."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except BrokenPipeError:
            _let_go()
            status = BROKEN_PIPE
        except (click.Abort, KeyboardInterrupt):
            status = INTERRUPTED
        except (ValueError, OSError, MemoryError) as error:
            _let_go()
            status = say(sentence(error))
        raise click.exceptions.Exit(status)


@contextmanager
def usage(refused: type[ValueError] = ValueError) -> Iterator[None]:
    """A value that is refused within, by this kind of error, is wrong usage."""
    try:
        yield
    except refused as error:
        raise click.UsageError(str(error)) from None


def _let_go() -> None:
    """What is still buffered for an output that takes no more must not fail again when Python ends (status 120)."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def interrupted(number: int, frame: FrameType | None) -> None:
    """For SIGINT: as ever, but while a module is imported the process ends: C++ may end it with an abort there."""
    while frame is not None:
        if frame.f_code.co_filename == IMPORTING:
            os._exit(INTERRUPTED)
        frame = frame.f_back
    raise KeyboardInterrupt


def sentence(error: Exception) -> str:
    """The error on one line, at most `LONG` characters of it; what a terminal would obey or hide is written out."""
    if isinstance(error, UnicodeEncodeError):
        lacking = error.object[error.start : error.start + 1]
        text = (
            f"the output cannot have {lacking!r}: its encoding is {error.encoding}; PYTHONIOENCODING=utf-8 changes it"
        )
    elif isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    else:
        none = "there is not enough memory" if isinstance(error, MemoryError) else type(error).__name__
        text = " ".join(str(error).split()) or none
    if len(text) > LONG:
        text = f"{text[: LONG // 2]} ... {text[-LONG // 2 :]}"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def say(text: str) -> int:
    """Print the sentence; returns the exit status."""
    click.echo(f"Error: {text}", err=True)
    return 1
