"""`gmoe trace`: what a routing trace holds, and the same as CSV."""

from pathlib import Path

import click
import numpy as np

from gmoe.cli.errors import Group
from gmoe.experts.trace import Trace, TraceError, from_route_csv

FILE = click.argument("file", metavar="TRACE", type=click.Path(exists=True, dir_okay=False, path_type=Path))


def read(path: Path) -> Trace:
    """A trace of our own, or a route_trace v1 in CSV; one sentence where it is neither."""
    try:
        return from_route_csv(path) if path.suffix == ".csv" else Trace.load(path)
    except TraceError as error:
        raise click.ClickException(str(error)) from None


@click.group(cls=Group)
def trace() -> None:
    """Show and export routing traces."""


@trace.command()
@FILE
def show(file: Path) -> None:
    """Say whose trace it is, how long, and how its layers spread their choices."""
    read_trace = read(file)
    header, rows = read_trace.header, read_trace.rows
    decode = rows["phase"] == 1
    click.echo(f"model        {header.model}")
    click.echo(f"fingerprint  {header.fingerprint}")
    click.echo(f"experts      {header.n_layer} layers x {header.n_expert}, {read_trace.ids.shape[1]} used")
    click.echo(f"requests     {len(np.unique(rows['request']))}")
    click.echo(f"decode       {len(np.unique(rows['step'][decode]))} passes, {decode.sum()} rows")
    click.echo(f"prefill      {len(np.unique(rows['step'][~decode]))} passes, {(~decode).sum()} rows")
    click.echo("\nlayer  used   hottest tenth serves  kept from the token before")
    for layer in range(header.n_layer):
        ids = read_trace.ids[rows["layer"] == layer]
        if not len(ids):
            continue
        count = np.sort(np.bincount(ids.ravel(), minlength=header.n_expert))[::-1]
        hottest = count[: -(-header.n_expert // 10)].sum() / count.sum()
        kept = (ids[1:, :, None] == ids[:-1, None, :]).any(axis=2).mean() if len(ids) > 1 else 0.0
        click.echo(f"{layer:5}  {np.count_nonzero(count):4}  {hottest:21.1%}  {kept:26.1%}")


@trace.command()
@FILE
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="File to write; .npz or .csv.")
def export(file: Path, output: Path | None) -> None:
    """Write TRACE as CSV, one line an expert asked for, or as .npz."""
    read_trace = read(file)
    if output is not None and output.suffix == ".npz":
        read_trace.save(output)
        return
    lines = ["request,phase,step,layer,position,slot,expert,weight"]
    columns = (read_trace.rows[name].tolist() for name in ("request", "phase", "step", "layer", "position"))
    for row, ids, weights in zip(zip(*columns, strict=True), read_trace.ids, read_trace.weights, strict=True):
        start = ",".join(map(str, row))
        lines += [f"{start},{slot},{e},{w:.6g}" for slot, (e, w) in enumerate(zip(ids, weights, strict=True))]
    text = "\n".join(lines) + "\n"
    if output is None:
        click.echo(text, nl=False)
    else:
        output.write_text(text)
