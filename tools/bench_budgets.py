"""Policies x budgets on a real text: hit rates and measured tok/s, beside LRU and Belady's choice; Markdown.

    python -m tools.widen gmoe/demo/demo.gguf wide.gguf --n-ff-exp 2048 --n-embd 1024 --type Q8_0
    python -m tools.bench_budgets wide.gguf --text story.txt --budgets 10,20,50 --policies lru,lfu,probability,auto

The text is decoded token by token, as if the model wrote it. Every run is a process in a memory cgroup of its own
(making one needs root), with so many per cent of the experts in memory, and so little room beside them that the page
cache is no second store; a policy with a prefetcher is written evict+prefetch. Runs go in turn, medians are printed.
"""

import argparse
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

from gmoe.experts.budget import budget_of
from gmoe.gguf.file import GGUFFile
from gmoe.gguf.hparams import Hparams
from gmoe.gguf.layout import ExpertLayout
from gmoe.llm import LLM
from gmoe.options import RuntimeOptions
from tools.compare_disk import CONTEXT, WARM, bandwidth, belady_misses, child, rate

BESIDE = 420 << 20  # bytes that a process takes beside its weights: Python, torch, KV cache, page tables


def options(policy: str, reader: str) -> dict[str, str]:
    """Of RuntimeOptions; `auto` chooses everything."""
    evict, _, prefetch = policy.partition("+")
    fixed = {} if policy == "auto" else {"evict": evict, "prefetch": prefetch or "none", "working_set": "none"}
    return {**fixed, "reader": reader}


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--budgets", default="10,20,50", help="per cent of the experts")
    parser.add_argument(
        "--policies", default="lru,lfu,least_stale,probability,hobbit,activation+activation_matrix,auto"
    )
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--reader", default="direct")
    given = parser.parse_args(arguments)
    policies = given.policies.split(",")
    with LLM.load(given.model, RuntimeOptions(device="cpu", context=CONTEXT, max_sequences=1)) as llm:
        ids = llm.tokenizer.encode(given.text.read_text(encoding="utf-8"), add_special=True, parse_special=False)
    ids = ids[: min(WARM + given.tokens, CONTEXT)]
    job: dict[str, Any] = {"model": str(given.model), "threads": given.threads, "ids": ids}
    resident = child("gmoe", job | {"host_memory": "100%", "options": {}, "trace": True}, None)
    with GGUFFile.open(given.model) as file:
        hparams = Hparams.from_metadata(file.metadata, str(given.model))
        budget = budget_of(file, ExpertLayout(file, hparams.n_layer, hparams.n_expert), hparams, "100%")
    shape = hparams.n_layer, hparams.n_expert
    asked = sum(len(experts) for _, experts in resident["routed"][WARM * len(budget.layout.layers) :])
    asked_a_token = asked / max(1, len(ids) - WARM)
    print(
        f"{given.model.name}, {given.model.stat().st_size / 1e9:.2f} GB, {date.today()}, {given.threads} threads, ",
        end="",
    )
    print(f"{len(ids)} tokens of {given.text.name}, direct reads {bandwidth(given.model) / 1e6:.0f} MB/s, ", end="")
    print(f"all in memory {rate(resident):.1f} tok/s. Hits % / MB read a token / tok/s (against LRU):\n")
    budgets = [int(text) for text in given.budgets.split(",")]
    rows: dict[str, list[str]] = {policy: [] for policy in policies}
    best: list[str] = []
    for part in budgets:
        slots = budget.experts * part // 100
        found: dict[str, list[dict[str, Any]]] = {policy: [] for policy in policies}
        memory = {"host_memory": str(budget.fixed + slots)}
        for _ in range(given.rounds):
            for policy in policies:
                run = job | memory | {"options": options(policy, given.reader)}
                found[policy].append(child("gmoe", run, budget.fixed + slots + BESIDE))
        lru = median(map(rate, found.get("lru", found[policies[0]])))
        for policy, runs in found.items():
            rows[policy].append(_cell(runs, lru))
        here = max(run.get("slots", 0) for runs in found.values() for run in runs)
        misses = belady_misses(resident["routed"], max(here, 1), shape, WARM)
        best.append(f"{100 * (1 - misses / asked_a_token):.1f}")
    print("| evict | " + " | ".join(f"{part} %" for part in budgets) + " |\n|---" + "|--:" * len(budgets) + "|")
    print("| belady | " + " | ".join(best) + " |")
    for policy, cells in rows.items():
        print(f"| {policy} | " + " | ".join(cells) + " |")


def _cell(runs: list[dict[str, Any]], lru: float) -> str:
    done = [run for run in runs if run.get("tokens")]
    if not done:
        return "killed" if runs[-1]["killed"] else str(runs[-1].get("error", "?"))
    hits = median(100 * run["hits"] / max(1, run["hits"] + run["misses"]) for run in done)
    read = median(run["bytes_loaded"] / run["tokens"] / 1e6 for run in done)
    speed = median(map(rate, done))
    return f"{hits:.1f} / {read:.1f} / {speed:.1f} ({speed / max(lru, 1e-9):.2f})"


if __name__ == "__main__":
    main()
