"""Runs one model under one budget with several policies in turn, and says what the simulator foretold of each.

    python -m tools.bench_policies MODEL --host-memory 900MiB --runs lru auto lfu --tokens 128 [--text FILE]

Each run is recorded; the foretelling replays the routing of the measured passes with the costs that the runs before it
left (GMOE_HOME), so that nothing is fitted to the run itself. Runs go in turn, `--repeat` times; medians are printed.
`record` instead of a policy is LRU with a recorder, `bare` LRU without one: what recording costs.
"""

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import gmoe
from gmoe.experts.schedule import Schedule
from gmoe.experts.simulate import Replay


def options(run: str, given: argparse.Namespace) -> gmoe.RuntimeOptions:
    """What a run is loaded with; `lru+next_gate` has a prefetcher."""
    evict, _, prefetch = run.partition("+")
    if run == "auto":
        policies = {}
    else:
        evict = "lru" if evict in ("record", "bare") else evict
        policies = {"evict": evict, "prefetch": prefetch or "none", "working_set": "none"}
    given_here = {"host_memory": given.host_memory, "context": given.context, "threads": given.threads}
    return gmoe.RuntimeOptions(device="cpu", max_sequences=1, **given_here, **policies)


def measure(run: str, given: argparse.Namespace) -> dict[str, Any]:
    """One run: decode tok/s, hits, bytes, and the simulator's tok/s for the same passes."""
    with gmoe.LLM.load(given.model, options(run, given)) as llm:
        if run == "bare":
            llm.dispatch.observers.clear()
        costs = None if llm.store.whole else llm.cache.costs.costs
        recorder = llm.record()
        if run == "bare":
            llm.dispatch.observers.clear()
        text = given.text.read_text(encoding="utf-8") if given.text else "Once upon a time there was a"
        ids = llm.tokenizer.encode(text, add_special=True, parse_special=False)[: given.prompt]
        params = gmoe.SamplingParams(max_tokens=given.tokens, temperature=0)
        before = llm.stats
        times = []
        for _ in llm.run(ids, params, ignore_end=True):
            times.append(time.perf_counter())
        after = llm.stats
        host = {name: after["host"][name] - before["host"][name] for name in after["host"]}
        speed = (len(times) - 1) / (times[-1] - times[0])
        found = {"tok/s": speed, "hits %": 100 * host["hits"] / max(host["hits"] + host["misses"], 1)}
        found |= {"MiB/token": host["bytes_loaded"] / 2**20 / len(times)}
        found["stall ms"] = 1000 * host["stall_seconds"] / len(times)
        found["chosen"] = chosen(llm) if run == "auto" else ""
        if costs is not None and run not in ("bare", "auto"):
            fixed = sum(llm.file.tensors[name].nbytes for name in llm.file.tensors if name not in llm.layout.names)
            machine = costs.machine(len(llm.layout.layers), fixed)
            replay = Replay(
                Schedule(recorder.trace()), llm.budget.experts, options(run, given).evict, machine=machine,
                groups=llm.cache.chooser.groups,
            )  # fmt: skip
            told = replay.run().decode
            found |= {"foretold tok/s": told.tokens_per_second, "foretold hits %": 100 * told.hit_rate}
    return found


def chosen(llm: gmoe.LLM) -> str:
    """What auto has come to."""
    ahead = llm.cache.chooser.prefetch
    evict = llm.cache.chooser.evicts[0].name if llm.cache.chooser.evicts else ""
    return f"{evict}, prefetch {ahead.name if ahead else ''}"


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--host-memory", required=True)
    parser.add_argument("--runs", nargs="+", default=["lru", "auto"])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--prompt", type=int, default=16, help="tokens of the text that are the prompt")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--text", type=Path)
    given = parser.parse_args(arguments)
    results: dict[str, list[dict[str, Any]]] = {run: [] for run in given.runs}
    for _ in range(given.repeat):
        for run in given.runs:
            results[run].append(measure(run, given))
    for run, found in results.items():
        numbers = {name: median(row[name] for row in found) for name in found[0] if name != "chosen"}
        line = "  ".join(f"{name} {np.round(value, 2)}" for name, value in numbers.items())
        print(f"{run:16} {line}  {found[-1]['chosen']}")


if __name__ == "__main__":
    main()
