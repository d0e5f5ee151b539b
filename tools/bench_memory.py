"""Where a process's memory goes, stage by stage: pages that are not the model's file.

`python -m tools.bench_memory MODEL.gguf` imports what gmoe's programs import, loads, reads prompts, and prints a table:
after each stage what the process has, and the most that it had in it. Anonymous pages are looked at every millisecond;
those of other files (libraries) at the end of a stage.
"""

import argparse
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

from gmoe.cli.lean import leave_out_meta

MIB = 1 << 20


def pages(kind: str) -> int:
    """Bytes of the process's pages of a kind of `/proc/self/status`: RssAnon, RssFile, RssShmem."""
    rows = Path("/proc/self/status").read_text().splitlines()
    return next(int(row.split()[1]) for row in rows if row.startswith(kind)) << 10


def most(work: Callable[[], Any]) -> tuple[Any, int, int]:
    """What some work gives, the anonymous bytes after it, and the most that were seen meanwhile."""
    seen, over = [0], Event()

    def watch() -> None:
        while not over.wait(0.001):
            seen.append(pages("RssAnon"))

    watcher = Thread(target=watch)
    watcher.start()
    try:
        made = work()
    finally:
        over.set()
        watcher.join()
    now = pages("RssAnon")
    return made, now, max(*seen, now)


def stages(model: Path, prompt: int, prompts: int, threads: int) -> Iterator[tuple[str, int, int]]:
    """The stages as they are done: a name, the bytes after it, the most in it."""
    loaded: list[Any] = []  # the model, once it is there

    def measured(name: str, work: Callable[[], Any]) -> tuple[str, int, int]:
        made, now, peak = most(work)
        others = pages("RssFile") + pages("RssShmem")
        if hasattr(made, "seconds"):
            loaded.append(made)
        if loaded:
            from gmoe.machine import resident

            others -= resident(model)
        return name, now + others, peak + others

    def load() -> Any:
        from gmoe.llm import LLM
        from gmoe.options import RuntimeOptions

        options = RuntimeOptions(device="cpu", threads=threads, context=prompt + 16, max_sequences=1)
        return LLM.load(model, options)

    def read(count: int) -> None:
        ids = [draw.randrange(loaded[0].model.n_vocab) for _ in range(count)]
        loaded[0].seconds(ids, 0, count == 1)

    draw = random.Random(1)
    yield measured("Python", lambda: time.sleep(0.01))
    yield measured("importing numpy", lambda: __import__("numpy"))
    leave_out_meta()
    yield measured("importing torch", lambda: __import__("torch"))
    yield measured("importing gmoe", lambda: __import__("gmoe.llm"))
    yield measured("loading", load)
    yield measured("the first token", lambda: read(1))
    for n in range(prompts):
        yield measured(f"{prompt} tokens, prompt {n + 1}", lambda: read(prompt))
    yield measured("a token after them", lambda: read(1))
    loaded[0].close()


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--prompt", type=int, default=512, help="tokens of a prompt")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("-t", "--threads", type=int, default=0)
    given = parser.parse_args(arguments)
    print("| after | MiB | at most |\n|---|---:|---:|", flush=True)
    for name, after, peak in stages(given.model, given.prompt, given.prompts, given.threads):
        print(f"| {name} | {after / MIB:.0f} | {peak / MIB:.0f} |", flush=True)


if __name__ == "__main__":
    main()
