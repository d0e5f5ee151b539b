"""What commands write: notes, and files, never the model that they read, and whole or not at all."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from gmoe.gguf.file import GGUFFile


def say_notes(notices: Iterable[str]) -> None:
    """What there is to be said about a loaded model, on stderr."""
    for notice in notices:
        click.echo(f"Note: {notice}", err=True)


def require_other(model: Path, output: Path) -> None:
    """Wrong usage where `output` is a part of `model`, by whatever name: what the command leaves out would be lost."""
    if not output.exists():
        return
    with GGUFFile.open(model) as file:
        if any(output.samefile(part) for part in file.parts):
            raise click.UsageError(f"{output} is the model itself; write to another file")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write: it takes the name of `path` behind the block, and nothing is left where the block fails.

    A pipe or a device is written itself.
    """
    if path.exists() and not path.is_file():
        yield path
        return
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
