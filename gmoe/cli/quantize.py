"""`gmoe quantize` and `gmoe twin`: a model, or its experts alone, in another type."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from gmoe.cli.errors import usage
from gmoe.cli.output import require_other
from gmoe.gguf.file import GGUFFile, TensorInfo
from gmoe.library.find import model_file
from gmoe.passes.mixes import BASES, Override, mix_named
from gmoe.passes.quantize import Progress, read_importance
from gmoe.passes.quantize import quantize as rewrite_quantized
from gmoe.passes.twin import twin as write_twin
from gmoe.passes.twin import type_named

_IMATRIX = click.option(
    "--imatrix",
    type=click.Path(path_type=Path),
    help="How much each column counts: a file of gmoe imatrix or llama-imatrix.",
)
_REQUANTIZE = click.option("--allow-requantize", is_flag=True, help="Take tensors that are quantized already.")


@click.command(epilog="TYPE is one of " + ", ".join(BASES) + ".")
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("type_name", metavar="TYPE")
@click.option("--tensor-type", "overrides", multiple=True, metavar="REGEX=TYPE", help="Another type for some tensors.")
@_IMATRIX
@_REQUANTIZE
def quantize(
    source: str,
    target: Path,
    type_name: str,
    overrides: tuple[str, ...],
    imatrix: Path | None,
    allow_requantize: bool,
) -> None:
    """Write the model IN to OUT in TYPE, a name of llama-quantize."""
    with usage():
        parsed = [Override.parse(text) for text in overrides]
        mix_named(type_name)
    path = model_file(source)
    require_other(path, target, imatrix)
    importance = read_importance(imatrix) if imatrix else None
    with _bar(path) as progress:
        rewrite_quantized(
            path, target, type_name,
            overrides=parsed, importance=importance, requantize=allow_requantize, progress=progress,
        )  # fmt: skip
    _summary(path, target)


@click.command()
@click.argument("model")
@click.option("--type", "type_name", default="Q2_K", show_default=True, help="Type of the twin's experts.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Default: MODEL.TYPE.twin.gguf beside MODEL.")
@_IMATRIX
def twin(model: str, type_name: str, output: Path | None, imatrix: Path | None) -> None:
    """Write MODEL's experts at a lower precision, for --miss twin and hobbit."""
    with usage():
        kind = type_named(type_name)
    path = model_file(model)
    target = output or path.with_name(f"{path.name.removesuffix('.gguf')}.{kind}.twin.gguf")
    require_other(path, target, imatrix)
    importance = read_importance(imatrix) if imatrix else None
    with _bar(path) as progress:
        write_twin(path, target, kind, importance=importance, progress=progress)
    _summary(path, target)
    click.echo(f"use it with: --twin {target}", err=True)


@contextmanager
def _bar(path: Path) -> Iterator[Progress]:
    """A bar over the bytes of the file on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda info, kind: None
        return
    with GGUFFile.open(path) as file:
        total = sum(info.nbytes for info in file.tensors.values())
    columns = (BarColumn(), TextColumn("{task.percentage:3.0f} %"), TimeRemainingColumn())
    columns_ = (*columns, TextColumn("{task.description}"))
    with Bars(*columns_, console=Console(stderr=True), transient=True) as bars:
        task, last = bars.add_task("", total=total), [0]

        def progress(info: TensorInfo, kind: str) -> None:
            bars.update(task, advance=last[0], description=f"{info.name}: {info.format.name} -> {kind}")
            last[0] = info.nbytes

        yield progress


def _summary(source: Path, target: Path) -> None:
    with GGUFFile.open(source) as before, GGUFFile.open(target) as after:
        sizes = [sum(info.nbytes for info in file.tensors.values()) for file in (before, after)]
        elements = sum(_elements(info.shape) for info in after.tensors.values())
    mib = [size / (1 << 20) for size in sizes]
    click.echo(f"{target}: {mib[0]:.1f} MiB -> {mib[1]:.1f} MiB, {8 * sizes[1] / elements:.2f} bits a weight", err=True)


def _elements(shape: tuple[int, ...]) -> int:
    n = 1
    for size in shape:
        n *= size
    return n
