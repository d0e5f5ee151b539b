"""The same GGUF in `gmoe bench` and in a program like llama.cpp's llama-bench: in turn, medians, ratios.

    python -m tools.compare_llama_bench model.gguf --bench build/bin/llama-bench -t 2 -p 512 -n 16
    python -m tools.compare_llama_bench model.gguf --bench ik/build/bin/llama-bench --with "-rtr 0" --with "-rtr 1"

A round is a process of gmoe and one of the program for every --with. What each prints as a test's average counts; the
medians of all rounds are compared, and the better --with counts for each test. Both compute as many tokens, each its
own random ones. In each round gmoe's process also measures how fast the file's pages can be read. This tool installs
nothing; where the program is missing it says how one is made.
"""

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import click

from gmoe import __version__
from gmoe.machine import usable_cores
from tools.compare_llamacpp import cpu_name, table_head, table_line

GMOE = [sys.executable, "-c", "from gmoe.cli.main import cli; cli()", "bench", "--device", "cpu"]
MADE = (
    "`cmake -B build -DGGML_NATIVE=ON -DCMAKE_BUILD_TYPE=Release && cmake --build build --target llama-bench` "
    "in the sources of llama.cpp or a fork of it makes one"
)

Rows = dict[str, dict[str, Any]]  # by test


def test_of(row: dict[str, Any]) -> str:
    """A row's test, named as in llama-bench's own table."""
    parts = [f"{name}{row[key]}" for name, key in (("pp", "n_prompt"), ("tg", "n_gen")) if row[key]]
    return "+".join(parts) + (f" @ d{row['n_depth']}" if row.get("n_depth") else "")


def rows_of(output: str) -> Rows:
    """What `-o json` printed, other lines around it left out; raises ValueError where it printed something else."""
    try:
        rows, _ = json.JSONDecoder().raw_decode(output, ("\n" + output).index("\n[\n"))
        found = {test_of(row): row for row in rows if row["avg_ts"] > 0}
    except (ValueError, KeyError, TypeError):
        raise ValueError("did not print what llama-bench prints with -o json") from None
    if len(found) < len(rows):
        raise ValueError("printed a test twice or without a speed; settings to compare take a --with each")
    return found


def measure(peer: str, command: list[str]) -> Rows:
    """Run one process; raises ValueError with a sentence that names the peer."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise ValueError(f"{command[0]}: {error.strerror}; {MADE}") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise ValueError(f"{peer} ended with {done.returncode}: {said}")
    try:
        return rows_of(done.stdout)
    except ValueError as error:
        raise ValueError(f"{peer} {error}") from None


def take_turns(commands: dict[str, list[str]], rounds: int) -> dict[str, list[Rows]]:
    """Every command once a round; each peer's rows, round by round. All must print the tests that gmoe prints."""
    found: dict[str, list[Rows]] = {peer: [] for peer in commands}
    for _ in range(rounds):
        for peer, command in commands.items():
            rows = measure(peer, command)
            found[peer].append(rows)
            for test in found["gmoe"][0]:
                if test not in rows:
                    raise ValueError(f"{peer} printed no {test}")
    return found


def report(path: Path, found: dict[str, list[Rows]], threads: int) -> list[str]:
    """What was compared, and a Markdown table of the medians."""
    first = {peer: next(iter(runs[0].values())) for peer, runs in found.items()}
    builds = sorted({str(row.get("build_commit", "unknown")) for peer, row in first.items() if peer != "gmoe"})
    reading = [next(iter(rows.values()))["memory_bandwidth"] / 1e9 for rows in found["gmoe"]]
    lines = [
        f"{time.strftime('%Y-%m-%d')}, {cpu_name()}, {threads} threads; gmoe {__version__}, the other's build: "
        f"{', '.join(builds)}; rounds: {len(reading)}; plain reading of the file's pages: {min(reading):.1f} to "
        f"{max(reading):.1f} GB/s.",
        "",
        *table_head(list(found)),
    ]
    for test in found["gmoe"][0]:
        values = {peer: median(rows[test]["avg_ts"] for rows in runs) for peer, runs in found.items()}
        lines.append(table_line(path, test, values, "tok/s", max, list(found)))
    return lines


@click.command()
@click.argument("files", type=click.Path(exists=True, dir_okay=False, path_type=Path), nargs=-1, required=True)
@click.option("--bench", type=click.Path(path_type=Path), required=True, help="the program to compare with")
@click.option("--with", "settings", multiple=True, default=[""], help="options for it, as '-fa 1'; each is a column")
@click.option("-t", "--threads", default=0, help="of both; default: all cores")
@click.option("-p", "--n-prompt", default="512", show_default=True, help="tokens of the prompts, as 512,2048; 0: none")
@click.option("-n", "--n-gen", default="16", show_default=True, help="tokens to decode, likewise")
@click.option("-d", "--n-depth", help="tokens of context before them, if the program has this option")
@click.option("-r", "--repetitions", default=2, show_default=True, help="of each test in a process")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
def main(
    files: tuple[Path, ...],
    bench: Path,
    settings: tuple[str, ...],
    threads: int,
    n_prompt: str,
    n_gen: str,
    n_depth: str | None,
    repetitions: int,
    rounds: int,
) -> None:
    """Print a Markdown table a file: tokens a second in gmoe, and in the program with the options of each --with."""
    threads = threads or usable_cores()
    tests = ["-t", str(threads), "-p", n_prompt, "-n", n_gen, "-r", str(repetitions), "-o", "json"]
    tests += ["-d", n_depth] if n_depth else []
    program = str(bench.resolve() if bench.exists() else bench)
    for path in files:
        try:
            commands = {"gmoe": [*GMOE, str(path), *tests]}
            for more in settings:
                commands[f"{bench.name} {more}".strip()] = [program, "-m", str(path), *tests, *shlex.split(more)]
            click.echo("\n".join(report(path, take_turns(commands, rounds), threads)) + "\n")
        except ValueError as error:
            raise click.ClickException(f"{path}: {error}") from None


if __name__ == "__main__":
    main()
