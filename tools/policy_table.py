"""Writes docs/benchmarks/policies.md: every policy at several budgets on real traces, beside Belady and the papers.

python -m tools.policy_table TRACE... [-o docs/benchmarks/policies.md] [--date 2026-11-25]
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from gmoe.experts.controls import CONTROLS
from gmoe.experts.machine import Machine
from gmoe.experts.policy import names
from gmoe.experts.route_csv import from_route_csv
from gmoe.experts.schedule import Schedule
from gmoe.experts.simulate import Replay, Report
from gmoe.experts.trace import Trace

BUDGETS = (10, 20, 30, 50)
MACHINE = Machine(bandwidth=8e8, expert_seconds=3e-4, layer_seconds=2e-4)
REAL = 5 << 19  # bytes of a real model's expert: smaller ones are timed as if they had as many
PAPERS = {  # what a paper evicts and reads ahead by
    "MoE-Infinity (activation + activation_matrix)": ("activation", "activation_matrix"),
    "FineMoE (probability + expert_map)": ("probability", "expert_map"),
}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Markdown."""
    yield "| " + " | ".join(head) + " |"
    yield "|" + "|".join("---" if n == 0 else "--:" for n in range(len(head))) + "|"
    for row in rows:
        yield "| " + " | ".join(row) + " |"
    yield ""


def of_trace(name: str, trace: Trace) -> Iterator[str]:
    """The section of one trace."""
    schedule = Schedule(trace)
    h = trace.header
    decode = sum(1 for turn in schedule.turns if turn.phase == 1)
    yield f"## {name}"
    yield ""
    yield (
        f"{h.model}: {h.n_layer} layers x {h.n_expert} experts, {trace.ids.shape[1]} used, "
        f"{len(set(trace.rows['request'].tolist()))} request(s), {decode} layers decoded."
    )
    yield ""
    reports: dict[tuple[str, str, int], Report] = {}
    machine = replace(MACHINE, bandwidth=MACHINE.bandwidth * min(1.0, max(h.expert_bytes) / REAL))

    def replay(evict: str, prefetch: str, budget: int) -> Report:
        key = evict, prefetch, budget
        if key not in reports:
            size = max(schedule.bytes * budget // 100, max(h.expert_bytes))
            reports[key] = Replay(schedule, size, evict, prefetch, machine=machine).run()
        return reports[key]

    yield "Decode hit rate, %, by budget (share of all experts' bytes); in brackets its share of Belady's:"
    yield ""
    order = ["belady", *(n for n in names("evict") if n != "belady"), *CONTROLS]
    rows = []
    for evict in order:
        cells = []
        for budget in BUDGETS:
            mine, best = (replay(n, "none", budget).decode.hit_rate for n in (evict, "belady"))
            cells.append(f"{100 * mine:.1f} ({mine / best:.2f})" if best else "-")
        rows.append([evict, *cells])
    yield from table(["evict", *(f"{budget} %" for budget in BUDGETS)], rows)
    yield "The papers' pairs against plain LRU and LFU: ratio of hit rates, of bytes read, of predicted tokens/s:"
    yield ""
    rows = []
    for paper, (evict, prefetch) in PAPERS.items():
        for against in ("lru", "lfu"):
            cells = []
            for budget in BUDGETS:
                mine, other = replay(evict, prefetch, budget), replay(against, "none", budget)
                hits = mine.decode.hit_rate / other.decode.hit_rate if other.decode.hit_rate else float("inf")
                read = mine.decode.bytes / max(other.decode.bytes, 1)
                speed = mine.decode.tokens_per_second / other.decode.tokens_per_second
                cells.append(f"{hits:.2f} / {read:.2f} / {speed:.2f}")
            rows.append([f"{paper} : {against}", *cells])
    yield from table(["hits / bytes / tok/s", *(f"{budget} %" for budget in BUDGETS)], rows)


def speed(schedule: Schedule) -> Iterator[str]:
    """How fast the simulator is."""
    rows = []
    for evict in ("lru", "sieve", "lfu", "least_stale", "probability", "hobbit", "belady"):
        cells = []
        for budget in (10, 50):
            rates = []
            for _ in range(2):
                replay = Replay(schedule, schedule.bytes * budget // 100, evict)
                began = time.perf_counter()
                report = replay.run()
                rates.append((report.decode.asked + report.prefill.asked) / (time.perf_counter() - began))
            cells.append(f"{max(rates) / 1e3:.0f}")
        rows.append([evict, *cells])
    yield from table(["thousand asks a second", "10 %", "50 %"], rows)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--date", default=time.strftime("%Y-%m-%d"))
    given = parser.parse_args(arguments)
    lines = [
        "# Eviction policies on real traces",
        "",
        f"{given.date}, `python -m tools.policy_table TRACE...`. Hit rates do not depend on the machine; the tokens/s",
        "of the papers' rows are the simulator's, for a disk of 0.8 GB/s and 0.3 ms of compute an expert.",
        "",
        "Where experts are read ahead, hits count what was read in vain as bytes: compare the bytes too. A replay has",
        "no hidden states, so that FineMoE's first layers go by the pass before. Experts below 2.5 MiB are timed as if",
        "they had as many. `static` knows the whole trace before it begins. What it says: [policies](../policies.md).",
        "",
    ]
    schedule = None
    for path in given.traces:
        trace = from_route_csv(path) if path.suffix == ".csv" else Trace.load(path)
        schedule = schedule or Schedule(trace)
        lines += of_trace(path.name.split(".")[0], trace)
    assert schedule is not None
    lines += ["## Speed of the simulator", "", "One thread, the first trace:", "", *speed(schedule)]
    text = "\n".join(lines).rstrip() + "\n"
    if given.output is None:
        sys.stdout.write(text)
    else:
        given.output.write_text(text)


if __name__ == "__main__":
    main()
