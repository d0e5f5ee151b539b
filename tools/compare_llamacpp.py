"""The same GGUF in llama.cpp and in gmoe: same tokens, same threads, in turn, medians, ratios and measured limits.

    python -m tools.compare_llamacpp model.gguf [more.gguf ...] --rows tg@0 tg@512 pp512 load --rounds 5 -t 2

Both stay loaded in processes of their own and take turns. llama.cpp runs with and without repacking its weights, and
the better counts for each row; "load" begins behind Python's imports, "start" with the process. llama.cpp comes from
`pip install llama-cpp-python`; this tool installs nothing.
"""

import argparse
import json
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gmoe.cli.lean import leave_out_meta

GENERATED = 16  # tokens of a decode row
ROWS = ("tg@0", "tg@512", "tg@4096", "pp512", "pp2048", "start", "load", "memory")
FIRST = {"start": "process to first token", "load": "load to first token"}  # with and without Python's imports
PEERS = ("gmoe", "llama.cpp repack", "llama.cpp")


class Gmoe:
    """Our side of a worker process."""

    def __init__(self, path: Path, threads: int, context: int):
        from gmoe.llm import LLM
        from gmoe.options import RuntimeOptions

        self.llm = LLM.load(path, RuntimeOptions(device="cpu", threads=threads, context=context, max_sequences=1))

    def seconds(self, ids: list[int], depth: int, one_by_one: bool) -> float:
        """Time of the tokens after the first `depth`."""
        return self.llm.seconds(ids, depth, one_by_one)


class LlamaCpp:
    """The peer's side."""

    def __init__(
        self,
        path: Path,
        threads: int,
        context: int,
        repack: bool,
        change: Callable[[Any], None] = lambda params: None,
    ):
        """`change` may set more of llama.cpp's parameters of a model."""
        import llama_cpp

        self.lib = lib = llama_cpp
        lib.llama_backend_init()
        silent = lib.llama_log_callback(lambda level, text, data: None)
        self._silent = silent
        lib.llama_log_set(silent, None)
        params = lib.llama_model_default_params()
        params.use_extra_bufts = repack
        change(params)
        self.model = lib.llama_model_load_from_file(str(path).encode(), params)
        if not self.model:
            raise ValueError(f"llama.cpp does not load {path}")
        settings = lib.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = context, 2048, 512
        settings.n_threads = settings.n_threads_batch = threads
        self.context = lib.llama_init_from_model(self.model, settings)

    def seconds(self, ids: list[int], depth: int, one_by_one: bool) -> float:
        """Time of the tokens after the first `depth`."""
        lib = self.lib
        lib.llama_memory_clear(lib.llama_get_memory(self.context), True)
        self._decode(ids[:depth], 2048)
        began = time.perf_counter()
        self._decode(ids[depth:], 1 if one_by_one else 2048)
        return time.perf_counter() - began

    def _decode(self, ids: list[int], step: int) -> None:
        lib = self.lib
        for at in range(0, len(ids), step):
            part = ids[at : at + step]
            tokens = (lib.llama_token * len(part))(*part)
            if lib.llama_decode(self.context, lib.llama_batch_get_one(tokens, len(part))):
                raise RuntimeError("llama_decode failed")
        lib.llama_synchronize(self.context)


def work(peer: str, path: Path, threads: int, context: int) -> None:
    """A worker: says how long loading to the first token took, then one time for each line of standard input."""
    if peer == "gmoe":  # as its program does
        leave_out_meta()
        import gmoe.llm  # noqa: F401  counted in "start", as what the peer imports is
    else:
        import llama_cpp  # noqa: F401
    began = time.perf_counter()
    side: Any = Gmoe(path, threads, context) if peer == "gmoe" else LlamaCpp(path, threads, context, "repack" in peer)
    side.seconds([1], 0, True)
    print(json.dumps({"load": time.perf_counter() - began}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if order == "memory":
            from gmoe.machine import memory_beside

            print(json.dumps(memory_beside(path)), flush=True)
        else:
            print(json.dumps(side.seconds(*order)), flush=True)


class Worker:
    """A peer in a process of its own."""

    def __init__(self, peer: str, path: Path, threads: int, context: int):
        command = [sys.executable, "-m", "tools.compare_llamacpp", str(path), "--worker", peer]
        command += ["-t", str(threads), "--context", str(context)]
        began = time.perf_counter()
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.load = self._read()["load"]
        self.start = time.perf_counter() - began

    def _read(self) -> Any:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise ValueError("a worker ended early")
        return json.loads(line)

    def ask(self, order: Any) -> Any:
        """Its answer to an order."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def order_of(row: str, vocabulary: int) -> tuple[list[int], int, bool, int]:
    """A row's tokens, depth, whether one by one, and how many are timed."""
    draw = random.Random(7)
    depth, count = (int(row[3:]), GENERATED) if row.startswith("tg@") else (0, int(row[2:]))
    return [draw.randrange(vocabulary) for _ in range(depth + count)], depth, row.startswith("tg@"), count


def compare(path: Path, rows: list[str], rounds: int, threads: int, peers: list[str]) -> Iterator[str]:
    """Markdown rows of one file, as they come."""
    speeds = [row for row in rows if row not in (*FIRST, "memory")]
    context = max([256, *(int(row[3:]) + GENERATED if "@" in row else int(row[2:]) for row in speeds)])
    firsts: dict[str, dict[str, list[float]]] = {row: {peer: [] for peer in peers} for row in FIRST}
    workers: dict[str, Worker] = {}
    for _ in range(rounds if set(FIRST) & set(rows) else 1):
        for peer in peers:
            if peer in workers:
                workers[peer].close()
            worker = workers[peer] = Worker(peer, path, threads, context)
            firsts["start"][peer].append(worker.start)
            firsts["load"][peer].append(worker.load)
    vocabulary = 30000
    for row in speeds:
        ids, depth, one_by_one, count = order_of(row, vocabulary)
        rates: dict[str, list[float]] = {peer: [] for peer in peers}
        for _ in range(rounds):
            for peer in peers:
                rates[peer].append(count / workers[peer].ask([ids, depth, one_by_one]))
        yield table_line(path, row, {peer: statistics.median(r) for peer, r in rates.items()}, "tok/s", best=max)
    for row, name in FIRST.items():
        if row in rows:
            medians = {peer: statistics.median(times) for peer, times in firsts[row].items()}
            yield table_line(path, name, medians, "s", best=min)
    if "memory" in rows:
        memory = {peer: workers[peer].ask("memory") / 2**20 for peer in peers}
        yield table_line(path, "peak memory beside the file", memory, "MiB", best=min)
    for worker in workers.values():
        worker.close()


def cpu_name() -> str:
    """The processor, as Linux calls it."""
    rows = Path("/proc/cpuinfo").read_text().splitlines()
    return next((row.split(":")[1].strip() for row in rows if "name" in row), "") or platform.processor()


def table_head(peers: Sequence[str]) -> list[str]:
    """The table's first two lines."""
    columns = ["file", "what", "unit", *peers, "ratio to the better"]
    return [f"| {' | '.join(columns)} |", "|---|---|---|" + "---:|" * (len(peers) + 1)]


def table_line(
    path: Path, row: str, values: dict[str, float], unit: str, best: Any, peers: Sequence[str] = PEERS
) -> str:
    """A line of the table: the values by peer, of which one is "gmoe"; the ratio is to the `best` of the others."""
    ours = values["gmoe"]
    theirs = {peer: value for peer, value in values.items() if peer != "gmoe"}
    cells = [f"{values[peer]:.2f}" if peer in values else "" for peer in peers]
    ratio = f"{ours / best(theirs.values()):.2f}" if theirs else ""
    return f"| {path.stem} | {row} | {unit} | " + " | ".join(cells) + f" | {ratio} |"


def header(path: Path, threads: int) -> list[str]:
    """Date, machine, versions, and how fast the file's pages can be read."""
    import numpy as np

    from gmoe import __version__
    from gmoe.machine import SAMPLE, memory_bandwidth

    data = np.memmap(path, np.uint8, "r")[:SAMPLE]
    speed = memory_bandwidth(data, threads) / 1e9
    versions = f"gmoe {__version__}"
    if find_spec("llama_cpp"):
        import llama_cpp

        versions += f", llama-cpp-python {llama_cpp.__version__}"
    return [
        f"{time.strftime('%Y-%m-%d')}, {cpu_name()}, {threads} threads; {versions}; "
        f"plain reading of the file's pages: {speed:.1f} GB/s.",
        "",
        *table_head(PEERS),
    ]


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), help=f"of {', '.join(ROWS)}; any N in tg@N, ppN")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-t", "--threads", type=int, default=0)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--context", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.worker:
        work(given.worker, given.files[0], given.threads, given.context)
        return
    from gmoe.machine import usable_cores

    threads = given.threads or usable_cores()
    peers = list(PEERS)
    if not find_spec("llama_cpp"):
        print("llama.cpp is not here: pip install llama-cpp-python", file=sys.stderr)
        peers = ["gmoe"]
    try:
        print("\n".join(header(given.files[0], threads)), flush=True)
        for path in given.files:
            for line in compare(path, given.rows, given.rounds, threads, peers):
                print(line, flush=True)
    except (ValueError, OSError) as error:
        sys.exit(f"{given.files[0]}: {error}")


if __name__ == "__main__":
    main()
