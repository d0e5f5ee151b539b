"""`gmoe simulate`: replay a routing trace through cache policies, before any is run."""

import ast
import csv
import io
import re
from itertools import product
from pathlib import Path
from typing import Any

import click

from gmoe.cli.trace import FILE, read
from gmoe.experts.policy import PolicyError
from gmoe.experts.simulate import Machine, Replay, Report
from gmoe.experts.trace import Trace, TraceError

UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
COLUMNS = (
    "budget MiB", "evict", "prefetch", "working set", "hits %", "late", "read MiB", "wasted MiB", "tok/s",
    "prefill hits %",
)  # fmt: skip


@click.command()
@FILE
@click.option("--budget", default="10%,25%,50%,75%", show_default=True, help="Percent of all experts, or 1000MiB, ...")
@click.option("--evict", default="lru,lfu,random,static,belady", show_default=True, help="Policies, name[:knob=value].")
@click.option("--prefetch", default="none", show_default=True, help="Policies that read ahead.")
@click.option("--working-set", default="none", show_default=True, help="Policies that keep experts for a while.")
@click.option("--disk", default="1GB/s", show_default=True, help="Bandwidth at which experts are read.")
@click.option("--link", help="Bandwidth into the GPU; the slower of both counts.")
@click.option("--expert-us", default=100.0, show_default=True, help="Microseconds to compute an expert.")
@click.option("--layer-us", default=200.0, show_default=True, help="Microseconds for the rest of a layer.")
@click.option("--csv", "as_csv", is_flag=True, help="CSV instead of a table.")
def simulate(
    file: Path, budget: str, evict: str, prefetch: str, working_set: str, disk: str, link: str | None,
    expert_us: float, layer_us: float, as_csv: bool,
) -> None:  # fmt: skip
    """Replay TRACE (.npz, or a route_trace .csv) with every combination of the lists given.

    Hits, late prefetches and tok/s are those of decoding; `random`, `static` and `belady` are the controls.
    """
    trace = read(file)
    machine = Machine(min(number(disk), number(link) if link else float("inf")), expert_us / 1e6, layer_us / 1e6)
    budgets = [budget_bytes(text, trace) for text in budget.split(",")]
    rows: list[list[str]] = []
    for size, e, p, w in product(budgets, evict.split(","), prefetch.split(","), working_set.split(",")):
        (evicts, e_knobs), (reads, p_knobs), (keeps, w_knobs) = policy(e), policy(p), policy(w)
        knobs = {"evict": e_knobs, "prefetch": p_knobs, "working_set": w_knobs}
        try:
            rows.append(row(Replay(trace, size, evicts, reads, keeps, machine, knobs).run()))
        except (PolicyError, TraceError, ValueError) as error:
            raise click.ClickException(str(error)) from None
    click.echo(as_text(rows, as_csv), nl=False)


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
    match = re.fullmatch(r"([0-9.]+)\s*([kmgt]?i?)b?(/s)?", text.strip().lower())
    if not match or match[2] not in UNITS or match[1].count(".") > 1 or not float(match[1]):
        raise click.UsageError(f"{text!r} is no size; say 500MB, 0.8GB/s or 2GiB")
    return float(match[1]) * UNITS[match[2]]


def budget_bytes(text: str, trace: Trace) -> int:
    """'25%' of the bytes of all experts, or a size."""
    if text.strip().endswith("%"):
        share = number(text.strip()[:-1]) / 100
        return int(share * sum(trace.header.expert_bytes) * trace.header.n_expert)
    return int(number(text))


def policy(text: str) -> tuple[str, dict[str, Any]]:
    """'hobbit:lru=0.5:lfu=0.5' -> ('hobbit', {'lru': 0.5, 'lfu': 0.5})."""
    name, *knobs = text.strip().split(":")
    given = {}
    for knob in knobs:
        key, _, value = knob.partition("=")
        try:
            given[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            raise click.UsageError(f"{text!r}: a knob is key=number, not {knob!r}") from None
    return name, given
