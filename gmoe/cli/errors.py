"""What a command's exceptions become: one sentence and an exit status, never a traceback."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

INTERRUPTED = 130  # as a shell reports a program that SIGINT ended
BROKEN_PIPE = 141  # likewise SIGPIPE: whoever read the output has gone, and nobody is told


def sentence(error: BaseException) -> str:
    """The error on one line, whatever it holds."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{error.strerror}"
    if isinstance(error, MemoryError):
        return f"not enough memory{': ' if str(error) else ''}{error}"
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def reported() -> Iterator[None]:
    """Errors that a user can cause leave as `Error: one sentence` and status 1; Ctrl-C as 130; a broken pipe quietly."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        _silence()
        raise click.exceptions.Exit(BROKEN_PIPE) from None
    except (KeyboardInterrupt, click.Abort):
        click.echo(err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None
    except (ValueError, OSError, MemoryError) as error:
        raise click.ClickException(sentence(error)) from None


def _silence() -> None:
    """Nothing that is still buffered may fail at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
