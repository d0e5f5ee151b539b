"""`gmoe simulate`: replay a routing trace through cache policies, before any is run."""

import ast
import csv
import io
import re
from itertools import product
from pathlib import Path
from typing import Any

import click

from gmoe.cli.output import require_unread
from gmoe.cli.picture import curves
from gmoe.cli.trace import FILE, read
from gmoe.experts.machine import Machine
from gmoe.experts.policy import PolicyError
from gmoe.experts.schedule import Schedule
from gmoe.experts.simulate import Replay, Report, equal_slots
from gmoe.experts.trace import TraceError

UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
COLUMNS = (
    "budget MiB", "evict", "prefetch", "working set", "hits %", "late", "read MiB", "wasted MiB", "tok/s",
    "prefill hits %",
)  # fmt: skip


@click.command()
@FILE
@click.option(
    "--budget", default="10%,25%,50%,75%", show_default=True,
    help="Percent of all experts, or 1000MiB; lists, and ranges as 10%..90%.",
)  # fmt: skip
@click.option("--evict", default="lru,lfu,random,static,belady", show_default=True, help="Policies, name[:knob=value].")
@click.option("--prefetch", default="none", show_default=True, help="Policies that read ahead.")
@click.option("--working-set", default="none", show_default=True, help="Policies that keep experts for a while.")
@click.option("--disk", default="1GB/s", show_default=True, help="Bandwidth at which experts are read.")
@click.option("--link", help="Bandwidth from host memory into the fast tier, where that is the GPU.")
@click.option("--host", help="With --link: size of the host memory between, in bytes or percent of all experts.")
@click.option("--expert-us", default=100.0, show_default=True, help="Microseconds to compute an expert.")
@click.option("--layer-us", default=200.0, show_default=True, help="Microseconds for the rest of a layer.")
@click.option("--grouped", is_flag=True, help="A pool of equal slots for each size of expert, as in a run.")
@click.option("--csv", "as_csv", is_flag=True, help="CSV instead of a table.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw hit rates and tok/s to this PNG.")
def simulate(
    file: Path, budget: str, evict: str, prefetch: str, working_set: str, disk: str, link: str | None,
    host: str | None, expert_us: float, layer_us: float, grouped: bool, as_csv: bool, plot: Path | None,
) -> None:  # fmt: skip
    """Replay TRACE (.npz, or a .csv of `trace export` or route_trace) with every combination of the lists given.

    Hits, late prefetches and tok/s are those of decoding; `random`, `static` and `belady` are the controls.
    """
    if not (0 <= expert_us < float("inf") and 0 <= layer_us < float("inf")):
        raise click.UsageError("--expert-us and --layer-us are numbers of at least 0")
    if plot is not None:
        require_unread(plot, file)
    try:
        try:
            schedule = Schedule(read(file))
        except TraceError as error:
            raise click.ClickException(f"{file}: {error}") from None
        machine = Machine(
            bandwidth=number(disk),
            link=number(link) if link else float("inf"),
            host=budget_bytes(host, schedule) if host else 0,
            expert_seconds=expert_us / 1e6,
            layer_seconds=layer_us / 1e6,
        )
        reports = []
        choices = (evict.split(","), prefetch.split(","), working_set.split(","))
        for size, *texts in product(budgets(budget, schedule), *choices):
            named = [policy(text) for text in texts]
            knobs = dict(zip(("evict", "prefetch", "working_set"), (knobs for _, knobs in named), strict=True))
            e, p, w = (name for name, _ in named)
            report = Replay(
                schedule, size, e, p, w, machine, knobs, equal_slots(schedule, size) if grouped else None
            ).run()
            report.evict, report.prefetch, report.working_set = texts
            reports.append(report)
    except PolicyError as error:
        raise click.UsageError(str(error)) from None
    except (TraceError, ValueError, TypeError) as error:
        raise click.ClickException(str(error)) from None
    click.echo(as_text([row(report) for report in reports], as_csv), nl=False)
    if plot is not None:
        try:
            curves(reports, schedule.bytes, plot)
        except ImportError:
            raise click.ClickException("--plot needs matplotlib: pip install 'gmoe[plot]'") from None


def row(report: Report) -> list[str]:
    """One line of the answer, in the order of `COLUMNS`."""
    decode, prefill = report.decode, report.prefill
    policies = [report.evict, report.prefetch, report.working_set]
    read_bytes = decode.bytes + prefill.bytes
    numbers = [f"{100 * decode.hit_rate:.1f}", str(decode.late), f"{read_bytes / 2**20:.0f}"]
    numbers += [f"{report.wasted / 2**20:.0f}", f"{decode.tokens_per_second:.2f}", f"{100 * prefill.hit_rate:.1f}"]
    return [f"{report.budget / 2**20:.0f}", *policies, *numbers]


def as_text(rows: list[list[str]], as_csv: bool) -> str:
    """CSV, or columns aligned to the right."""
    table = [list(COLUMNS), *rows]
    if as_csv:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(table)
        return text.getvalue()
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "".join("  ".join(c.rjust(n) for c, n in zip(line, widths, strict=True)) + "\n" for line in table)


def number(text: str) -> float:
    """'0.8GB/s' -> 8e8."""
    match = re.fullmatch(r"([0-9]+\.?[0-9]*|\.[0-9]+)\s*([kmgt]?i?)b?(/s)?", text.strip().lower())
    if not match or match[2] not in UNITS or not float(match[1]):
        raise click.UsageError(f"{text!r} is no size; say 500MB, 0.8GB/s or 2GiB")
    return float(match[1]) * UNITS[match[2]]


def budgets(text: str, schedule: Schedule) -> list[int]:
    """'10%..30%,1GiB' -> bytes; a range goes in steps of ten percent."""
    sizes = []
    for part in text.split(","):
        first, dots, last = part.partition("..")
        if dots and not (first.strip().endswith("%") and last.strip().endswith("%")):
            raise click.UsageError(f"{part!r}: a range is in percent, as 10%..90%")
        if dots:
            begin, end = (number(end.strip()[:-1]) for end in (first, last))
            if begin > end:
                raise click.UsageError(f"{part!r}: the range is empty")
            if end > 100:
                raise click.UsageError(f"{part!r}: a range ends at 100%, which is all experts")
            count = int((end - begin) / 10 + 1e-9) + 1
            sizes += [budget_bytes(f"{begin + 10 * n}%", schedule) for n in range(count)]
        else:
            sizes.append(budget_bytes(part, schedule))
    return sizes


def budget_bytes(text: str, schedule: Schedule) -> int:
    """'25%' of the bytes of all experts, or a size."""
    if text.strip().endswith("%"):
        return int(number(text.strip()[:-1]) / 100 * schedule.bytes)
    return int(number(text))


def policy(text: str) -> tuple[str, dict[str, Any]]:
    """'hobbit:lru=0.5:lfu=0.5' -> ('hobbit', {'lru': 0.5, 'lfu': 0.5}); what is no number is a text."""
    name, *knobs = text.strip().split(":")
    given: dict[str, Any] = {}
    for knob in knobs:
        key, sign, value = knob.partition("=")
        if not sign:
            raise click.UsageError(f"{text!r}: a knob is key=value, not {knob!r}")
        try:
            given[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            given[key] = value
    return name, given
