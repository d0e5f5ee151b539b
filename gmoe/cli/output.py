"""What commands write: notes, and files, never the model that they read."""

from collections.abc import Iterable
from pathlib import Path

import click

from gmoe.gguf.file import GGUFFile


def say_notes(notices: Iterable[str]) -> None:
    """What there is to be said about a loaded model, on stderr."""
    for notice in notices:
        click.echo(f"Note: {notice}", err=True)


def require_other(model: Path, output: Path, *others: Path | None) -> None:
    """Wrong usage where `output` is a part of `model`, by whatever name: what the command leaves out would be lost.

    Or where it is another of the files that are read.
    """
    if not output.exists():
        return
    with GGUFFile.open(model) as file:
        if any(output.samefile(part) for part in file.parts):
            raise click.UsageError(f"{output} is the model itself; write to another file")
    require_unread(output, *others)


def require_unread(output: Path, *read: Path | None) -> None:
    """Wrong usage where `output` is one of the files that are read, by whatever name."""
    if output.exists() and any(path is not None and path.exists() and output.samefile(path) for path in read):
        raise click.UsageError(f"{output} is what is read; write to another file")
