"""Does a model run at these memory limits? `python -m tools.bench_limits MODEL.gguf --limits 535MB,400MB --rounds 10`.

Each run is a process in a memory cgroup of its own (making one needs root) that sizes itself, reads a prompt of random
tokens and answers with a few; the page cache forgets the file before it. Prints a Markdown table.
"""

import argparse
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from gmoe.engine.sampling import SamplingParams
from gmoe.llm import LLM
from gmoe.options import RuntimeOptions, memory_bytes
from tools.compare_disk import Group, forget


def answer(model: Path, prompt: int, tokens: int) -> None:
    """In the child: one line says how it was."""
    with LLM.load(model, RuntimeOptions(device="cpu", threads=2)) as llm:
        ids = random.Random(1).choices(range(llm.model.n_vocab), k=prompt)
        count = len(list(llm.run(ids, SamplingParams(max_tokens=tokens, temperature=0), ignore_end=True)))
        slots = "all" if llm.store.whole else str(llm.store.slots)
        own = next(row.split()[1] for row in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in row)
        print(f"{slots} | {llm._engine.scheduler.chunk} | {int(own) >> 10} | {count} tokens")


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--limits", default="1200MB,600MB,535MB,400MB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=600)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.child:
        answer(given.model, given.prompt, given.tokens)
        return
    print("| limit | slots | chunk | own MiB at the end | | max_usage MiB |\n|---|--:|--:|--:|---|--:|")
    for limit in given.limits.split(","):
        for _ in range(given.rounds):
            forget(given.model)
            group = Group(memory_bytes(limit, 0))
            with tempfile.TemporaryDirectory() as folder:
                alone = Path(folder) / given.model.name  # what a run leaves beside its model must not help the next
                alone.symlink_to(given.model.resolve())
                how = ["--child", "--prompt", str(given.prompt), "--tokens", str(given.tokens)]
                done = subprocess.run(
                    [sys.executable, "-m", "tools.bench_limits", str(alone), *how],
                    preexec_fn=group.enter, capture_output=True, text=True,
                )  # fmt: skip
            last = (done.stderr.strip().splitlines() or ["?"])[-1].rpartition(": ")[2]
            said = (
                done.stdout.strip() if not done.returncode else f"| | | {'killed' if done.returncode == -9 else last}"
            )
            print(f"| {limit} | {said} | {group.peak() >> 20} |", flush=True)
            group.close()


if __name__ == "__main__":
    main()
