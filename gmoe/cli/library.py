"""The commands about models that are here: create, list, cp, rm, pull, push."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bars

from gmoe.cli.errors import usage
from gmoe.library.create import create as create_model
from gmoe.library.manifest import Library
from gmoe.library.modelfile import parse_modelfile
from gmoe.library.name import ModelName
from gmoe.library.pull import pull as pull_model
from gmoe.library.push import push as push_model
from gmoe.library.registry import Progress

LARGEST = 64 << 20  # bytes of a Modelfile
AGES = (("year", 31_536_000), ("month", 2_592_000), ("week", 604_800), ("day", 86_400), ("hour", 3600), ("minute", 60))


@click.command()
@click.argument("name")
@click.option("-f", "--file", type=click.Path(path_type=Path), help="Name of the Modelfile (default: Modelfile).")
@click.option("-q", "--quantize", "type_name", metavar="TYPE", help="Quantize the model of FROM to this type (q4_K_M).")
def create(name: str, file: Path | None, type_name: str | None) -> None:
    """Create a model from a Modelfile."""
    from gmoe.loadable import passed_over, require_fitting, require_loadable

    if type_name is not None:
        from gmoe.passes.mixes import mix_named

        with usage():
            mix_named(type_name)
    path, library, target = file or Path("Modelfile"), Library.default(), ModelName.parse(name)
    modelfile = parse_modelfile(_text_of(path), require_loadable)
    for warning in (*modelfile.warnings, *passed_over(modelfile)):
        click.echo(f"warning: {warning}", err=True)
    with ExitStack() as stack:
        if type_name is not None:
            from gmoe.passes.quantized import quantized

            modelfile = stack.enter_context(quantized(library, modelfile, path.parent, type_name, _first))
        say = partial(click.echo, err=True)
        create_model(library, target, modelfile, path.parent, say, require_fitting)


def _text_of(path: Path) -> bytes:
    with path.open("rb") as file:
        text = file.read(LARGEST + 1)
    if len(text) > LARGEST:
        raise ValueError(f"{path} is no Modelfile: it has more than {LARGEST >> 20} MiB")
    return text


def _first(step: Progress) -> None:
    if not step.completed:
        click.echo(step.status, err=True)


@click.command(name="list")
@click.argument("prefix", default="")
def list_models(prefix: str) -> None:
    """List models."""
    for line in listed(prefix):
        click.echo(line)


def listed(prefix: str = "") -> list[str]:
    """The table of the models whose names begin so."""
    rows = [("NAME", "ID", "SIZE", "MODIFIED")]
    for name, manifest in Library.default().models():
        if str(name).lower().startswith(prefix.lower()):
            rows.append((str(name), manifest.digest[:12], human_bytes(manifest.size), age(manifest.modified)))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return ["".join(cell.ljust(width + 4) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


@click.command()
@click.argument("source")
@click.argument("destination")
def cp(source: str, destination: str) -> None:
    """Copy a model."""
    Library.default().copy(ModelName.parse(source), ModelName.parse(destination))
    click.echo(f"copied '{source}' to '{destination}'")


@click.command()
@click.argument("names", nargs=-1, required=True)
def rm(names: tuple[str, ...]) -> None:
    """Remove one or more models."""
    for name in names:
        Library.default().remove(ModelName.parse(name))
        click.echo(f"deleted '{name}'")


@click.command()
@click.argument("name")
@click.option("--insecure", is_flag=True, help="Speak plain HTTP with the registry.")
def pull(name: str, insecure: bool) -> None:
    """Pull a model from a registry, or from Hugging Face (hf.co/user/repository:Q4_K_M)."""
    fetch_model(name, insecure)


def fetch_model(name: str, insecure: bool) -> None:
    """Pull with bars on standard error."""
    with _bars() as report:
        pull_model(Library.default(), ModelName.parse(name), report, insecure=insecure)


@click.command()
@click.argument("name")
@click.option("--insecure", is_flag=True, help="Speak plain HTTP with the registry.")
def push(name: str, insecure: bool) -> None:
    """Push a model to a registry."""
    with _bars() as report:
        push_model(Library.default(), ModelName.parse(name), report, insecure=insecure)


@contextmanager
def _bars() -> Iterator[Callable[[Progress], None]]:
    """A line for each step and a bar for each blob, on standard error."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    bars = Bars(*columns, TimeRemainingColumn(), console=Console(stderr=True))
    tasks: dict[str, TaskID] = {}

    def report(step: Progress) -> None:
        if not step.digest:
            bars.console.print(step.status, highlight=False)
            return
        if not tasks:  # not before: the end of no bars is an empty line
            bars.start()
        if step.digest not in tasks:
            tasks[step.digest] = bars.add_task(step.status, total=step.total)
        bars.update(tasks[step.digest], completed=step.completed)

    try:
        yield report
    finally:
        if tasks:
            bars.stop()


def human_bytes(size: int) -> str:
    """A size as Ollama writes it, in powers of 1000: 4.7 GB, 21 MB, 512 B."""
    for unit, letter in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "KB")):
        if size >= unit:
            amount = size / unit
            return f"{amount:.1f} {letter}" if amount < 10 else f"{amount:.0f} {letter}"
    return f"{size} B"


def age(then: float) -> str:
    """How long ago, in words: "3 weeks ago"; `then` is seconds since 1970."""
    seconds = max(0, int(time.time() - then))
    if seconds < 60:
        return "Less than a second ago" if seconds == 0 else f"{seconds} second{'s' * (seconds != 1)} ago"
    word, count = next((word, seconds // unit) for word, unit in AGES if seconds >= unit)
    return f"{count} {word}{'s' * (count != 1)} ago"
