"""`gmoe trace`: record the routing of a model, look at it, write it as CSV."""

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from shutil import get_terminal_size
from typing import Any

import click
import numpy as np

from gmoe.cli.errors import Group
from gmoe.cli.options import runtime_flags, take
from gmoe.cli.output import require_other, require_unread, say_notes
from gmoe.cli.picture import png, terminal
from gmoe.cli.sensitivity import sensitivity
from gmoe.experts.trace import Trace, TraceError
from gmoe.experts.trace_csv import any_trace, to_csv
from gmoe.library.find import model_file
from gmoe.options import RuntimeOptions
from gmoe.whole import whole

EXISTING = click.Path(exists=True, dir_okay=False, path_type=Path)
FILE = click.argument("file", metavar="TRACE", type=EXISTING)


def read(path: Path) -> Trace:
    """A trace of our own, as .npz or CSV, or a route_trace v1; one sentence where it is neither."""
    try:
        return any_trace(path)
    except TraceError as error:
        raise click.ClickException(str(error)) from None


@click.group(cls=Group)
def trace() -> None:
    """Record, show and export routing traces."""


trace.add_command(sensitivity)


@trace.command()
@click.argument("model")
@click.option(
    "-f", "--file", "text", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Text to read."
)
@click.option(
    "--prompts", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help='File of prompts, a line each; a line may be {"task": ..., "prompt": ...}.',
)  # fmt: skip
@click.option(
    "-n", "tokens", type=click.IntRange(min=1), default=64, show_default=True, help="Tokens to answer each prompt with."
)
@click.option(
    "--window",
    type=click.IntRange(min=1),
    default=512,
    show_default=True,
    help="Tokens of the text that are one request.",
)
@click.option("--limit", type=click.IntRange(min=0), default=0, help="Requests to run; 0: all.")
@click.option("--scores", is_flag=True, help="Record the probabilities of all experts too.")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Default: MODEL's name, .trace, here."
)
@runtime_flags
def record(
    model: str, text: Path | None, prompts: Path | None, tokens: int, window: int, limit: int, scores: bool,
    output: Path | None,
    **flags: Any,
) -> None:  # fmt: skip
    """Run MODEL over a text (read token by token, as if it wrote it), or over prompts, and write its routing."""
    if (text is None) == (prompts is None):
        raise click.UsageError("give either -f TEXT or --prompts FILE")
    options = take(RuntimeOptions, flags)
    path = model_file(model)
    output = output or Path(path.stem + ".trace")
    if not output.parent.is_dir():
        raise click.ClickException(f"{output}: its folder does not exist")
    require_other(path, output, text, prompts)
    from gmoe.engine.sampling import SamplingParams
    from gmoe.llm import LLM

    with LLM.load(path, options) as llm:
        say_notes(llm.notices)
        recorder, tasks = llm.record(scores=scores), list[str]()
        window = min(window, llm.context)
        if text is not None:
            ids = llm.tokenizer.encode(text.read_text("utf-8", "replace"), add_special=True, parse_special=False)
            work: Sequence[Any] = [ids[at : at + window] for at in range(0, len(ids), window)]
        else:
            assert prompts is not None
            lines = enumerate(prompts.read_text("utf-8", "replace").splitlines(), 1)
            work = [_prompt(line, f"{prompts}: line {number}") for number, line in lines if line.strip()]
        if not work:
            raise click.ClickException(f"{text or prompts}: there is nothing in it that could be run")
        try:
            for job in work[: limit or None]:
                tasks.append(text.stem if text is not None else job[0])
                if text is not None:
                    llm.read(job, min(32, len(job)))
                else:
                    for _ in llm.generate(job[1], SamplingParams(max_tokens=tokens, temperature=0)):
                        pass
                if sys.stderr.isatty():
                    click.echo(f"\r{len(tasks)} of {len(work[: limit or None])} requests", nl=False, err=True)
        except KeyboardInterrupt:
            click.echo(" (interrupted)", nl=False, err=True)
        if sys.stderr.isatty():
            click.echo(err=True)
        recorded = recorder.trace()
    recorded = replace(recorded, header=replace(recorded.header, tasks=tuple(tasks)))
    click.echo(f"{_save(recorded, output.resolve())}: {len(recorded)} rows of {len(tasks)} requests", err=True)


def _prompt(line: str, where: str) -> tuple[str, str]:
    """(task, prompt) of a line."""
    if line.lstrip().startswith("{"):
        try:
            said = json.loads(line)
        except ValueError as error:
            raise click.ClickException(f"{where} is no JSON: {error}") from None
        if not isinstance(said.get("prompt"), str):
            raise click.ClickException(f'{where} has no "prompt" that is a text')
        return str(said.get("task", "")), said["prompt"]
    return "", line


def _save(recorded: Trace, output: Path) -> Path:
    """Write it where it should go, or with a warning where there is room: what was recorded is not lost."""
    try:
        recorded.save(output)
    except OSError as error:
        elsewhere = Path(tempfile.gettempdir()) / output.name
        click.echo(f"Warning: {output} cannot be written ({error.strerror}); trying {elsewhere}", err=True)
        recorded.save(elsewhere)
        return elsewhere
    return output


@trace.command()
@FILE
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Write the pictures to this PNG.")
def show(file: Path, plot: Path | None) -> None:
    """Say whose trace it is, how long, how its layers spread their choices; with pictures."""
    if plot is not None:
        require_unread(plot, file)
    read_trace = read(file)
    header, rows = read_trace.header, read_trace.rows
    decode = rows["phase"] == 1
    click.echo(f"model        {header.model}")
    click.echo(f"fingerprint  {header.fingerprint}")
    click.echo(f"experts      {header.n_layer} layers x {header.n_expert}, {read_trace.ids.shape[1]} used")
    click.echo(f"requests     {len(np.unique(rows['request']))}")
    click.echo(f"decode       {len(np.unique(rows['step'][decode]))} passes, {decode.sum()} rows")
    if read_trace.scores is not None:
        click.echo("scores       of all experts")
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
    click.echo("\n" + terminal(read_trace, min(120, get_terminal_size((100, 40)).columns)), nl=False)
    if plot is not None:
        try:
            png(read_trace, plot)
        except ImportError:
            raise click.ClickException("--plot needs matplotlib: pip install 'gmoe[plot]'") from None


@trace.command()
@FILE
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="File to write; .npz or .csv.")
def export(file: Path, output: Path | None) -> None:
    """Write TRACE as CSV, one line an expert asked for, or as .npz."""
    if output is not None:
        require_unread(output, file)
    read_trace = read(file)
    if output is not None and output.suffix == ".npz":
        read_trace.save(output)
        return
    text = "".join(to_csv(read_trace))
    if output is None:
        click.echo(text, nl=False)
    else:
        with whole(output) as part:
            part.write_text(text, encoding="utf-8")
