"""`gmoe pack`: a model whose experts lie in one piece."""

from pathlib import Path

import click

from gmoe.cli.output import require_other
from gmoe.library.find import model_file
from gmoe.passes.pack import pack as write_packed


@click.command()
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT", type=click.Path(path_type=Path, dir_okay=False))
def pack(source: str, target: Path) -> None:
    """Write the model IN to OUT with gate, up and down of each expert together, so that one read brings it.

    Lossless. gmoe reads the result as any other file; other programs may not know its tensors' names.
    """
    path = model_file(source)
    require_other(path, target)
    write_packed(path, target)
    click.echo(f"{target}: {target.stat().st_size / 2**20:.0f} MiB", err=True)
