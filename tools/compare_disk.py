"""gmoe beside llama.cpp's mmap under a memory limit: `python -m tools.compare_disk MODEL.gguf --limit 1200MB`.

Both run the same tokens, one at a time, in a memory cgroup of their own (v1 or v2; making one needs root), in turn;
the page cache forgets the file before each run. llama.cpp comes from `pip install llama-cpp-python`; it maps the file
and repacks nothing, since what it repacks would not fit. The limit printed is 1 / max(compute, missing bytes of
Belady's choice / bandwidth of direct reads), both measured here.
"""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from gmoe.engine.sampling import SamplingParams
from gmoe.engine.scheduler import Turn
from gmoe.engine.sequence import Sequence as Tokens
from gmoe.experts.expert_id import ExpertId
from gmoe.experts.memory import mounts
from gmoe.experts.policy import load
from gmoe.experts.pool import SlotPool
from gmoe.gguf.file import GGUFFile
from gmoe.llm import LLM
from gmoe.options import RuntimeOptions, memory_bytes

WARM = 16  # tokens before the clock starts
CONTEXT = 512
PATIENCE = 10.0  # seconds after which a slow run stops early, and again for its warming


class Group:
    """A memory cgroup for one child."""

    def __init__(self, limit: int):
        v2, _, point = min(mounts(Path("/")))  # v1 where both are there
        self.path = Path(point) / f"gmoe-{os.getpid()}"
        self.path.mkdir()
        (self.path / ("memory.max" if v2 else "memory.limit_in_bytes")).write_text(str(limit))
        self.peak_file = self.path / ("memory.peak" if v2 else "memory.max_usage_in_bytes")

    def enter(self) -> None:
        """Called in the child before it runs."""
        (self.path / "cgroup.procs").write_text(str(os.getpid()))

    def peak(self) -> int:
        """The most bytes that were in use at once."""
        return int(self.peak_file.read_text())

    def close(self) -> None:
        """Remove it; it must be empty."""
        self.path.rmdir()


def timed(decode: Callable[[int], Any], ids: Sequence[int], warm: Callable[[], None]) -> dict[str, Any]:
    """Decode token after token; what was measured after `WARM` tokens, or after `PATIENCE`."""
    began = time.perf_counter()
    seconds: list[float] = []
    warming = True
    for n, id in enumerate(ids):
        if warming and (n == WARM or time.perf_counter() - began > PATIENCE):
            warming, began = False, time.perf_counter()
            warm()
        start = time.perf_counter()
        decode(id)
        if not warming:
            seconds.append(time.perf_counter() - start)
            if time.perf_counter() - began > PATIENCE:
                break
    return {"tokens": len(seconds), "seconds": sum(seconds)}


def run_gmoe(job: dict[str, Any]) -> dict[str, Any]:
    """gmoe on `job["ids"]`, or on its own greedy continuation of them."""
    given = {"device": "cpu", "threads": job["threads"], "host_memory": job["host_memory"]} | job["options"]
    options = RuntimeOptions(context=CONTEXT, max_sequences=1, **given)
    routed: list[tuple[int, list[int]]] = []
    with LLM.load(Path(job["model"]), options) as llm:
        if job.get("greedy"):
            params = SamplingParams(max_tokens=job["greedy"], temperature=0)
            return {"ids": [event.token_id for event in llm.run(job["ids"], params, ignore_end=True)]}
        if job.get("trace"):
            llm.dispatch.observers.append(
                lambda layer, routing: routed.append((layer, np.unique(routing.topk_ids.numpy()).tolist()))
            )
        seq = Tokens([], SamplingParams())
        engine = llm._engine  # idle: nobody else submits
        before: dict[str, Any] = {}

        def decode(id: int) -> None:
            seq.ids.append(id)
            engine.scheduler.make_room(seq, seq.n_cached + 1, keep=[])
            engine.runner.forward([Turn(seq, 1)], [0])
            seq.n_cached += 1

        llm.dispatch.begin()
        found = timed(decode, job["ids"], lambda: before.update(llm.stats["host"]))
        now = llm.stats["host"]
        found |= {name: now[name] - before[name] for name in now}
        found |= {"notices": llm.notices, "slots": 0 if llm.store.whole else llm.store.slots, "routed": routed}
    return found


def run_llamacpp(job: dict[str, Any]) -> dict[str, Any]:
    """llama.cpp, memory-mapped, nothing repacked."""
    import llama_cpp

    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, None)
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    params.use_mmap, params.n_gpu_layers, params.use_extra_bufts = True, 0, False
    model = llama_cpp.llama_model_load_from_file(job["model"].encode(), params)
    how = llama_cpp.llama_context_default_params()
    how.n_ctx, how.n_batch, how.n_ubatch = CONTEXT, 32, 32
    how.n_threads = how.n_threads_batch = job["threads"]
    context = llama_cpp.llama_init_from_model(model, how)
    if not model or not context:
        raise SystemExit("llama.cpp cannot load the model")
    one = (llama_cpp.llama_token * 1)()

    def decode(id: int) -> None:
        one[0] = id
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(one, 1)):
            raise SystemExit("llama_decode failed")
        llama_cpp.llama_get_logits(context)

    return timed(decode, job["ids"], lambda: None)


def child(engine: str, job: dict[str, Any], limit: int | None) -> dict[str, Any]:
    """Run a job in a process of its own under `limit` bytes; {"killed": True} where the kernel ended it."""
    (forget if limit else recall)(Path(job["model"]))
    group = None if limit is None else Group(limit)
    try:
        with tempfile.TemporaryDirectory() as folder:  # what a run leaves beside its model must not help the next
            paper = Path(folder) / "job.json"
            paper.write_text(json.dumps(job | {"model": _linked(Path(job["model"]), Path(folder))}))
            done = subprocess.run(
                [sys.executable, "-m", "tools.compare_disk", "--child", engine, str(paper)],
                preexec_fn=None if group is None else group.enter,
                capture_output=True,
                text=True,
            )
        found: dict[str, Any] = {"killed": done.returncode == -9}
        if done.returncode == 0:
            found |= json.loads(done.stdout.splitlines()[-1])
        elif not found["killed"]:
            found["error"] = (done.stderr.strip().splitlines() or ["?"])[-1]
        return found | ({} if group is None else {"peak": group.peak()})
    finally:
        if group is not None:
            group.close()


def _linked(model: Path, folder: Path) -> str:
    with GGUFFile.open(model) as file:
        for part in file.parts:
            (folder / part.name).symlink_to(part.resolve())
    return str(folder / model.name)


def forget(path: Path) -> None:
    """Drop a file from the page cache, so that no run finds what another has read."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def recall(path: Path) -> None:
    """Have the whole file in the page cache, for a run without a limit."""
    with path.open("rb", buffering=0) as file:
        while file.read(16 << 20):
            pass


def bandwidth(path: Path, piece: int = 1 << 20, seconds: float = 1.0, readers: int = 4) -> float:
    """Bytes a second of direct reads of random pieces, several in flight."""
    import mmap

    size, total, end = path.stat().st_size, [0] * readers, time.perf_counter() + seconds
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)

    def read(n: int) -> None:
        buffer, choose = memoryview(mmap.mmap(-1, piece)), random.Random(n)
        while time.perf_counter() < end:
            total[n] += os.preadv(fd, [buffer], choose.randrange((size - piece) // 4096) * 4096)

    began = time.perf_counter()
    threads = [threading.Thread(target=read, args=(n,)) for n in range(readers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(fd)
    return sum(total) / (time.perf_counter() - began)


def belady_misses(routed: Sequence[tuple[int, list[int]]], slots: int, shape: tuple[int, int], warm: int) -> float:
    """Misses a token of the best choice possible with so many slots, after `warm` tokens."""
    pool = SlotPool(slots, load("evict", "belady", shape=shape, future=routed))
    layers = len({layer for layer, _ in routed})
    misses = 0
    for n, (layer, experts) in enumerate(routed):
        pool.evict.observe(layer, np.array([experts]), np.ones((1, len(experts))), None)
        pinned = {ExpertId(layer, expert) for expert in experts}
        for id in sorted(pinned):
            if pool.lookup(id) < 0:
                pool.place(id, pinned)
                misses += n >= warm * layers
    return misses / max(1, len(routed) / layers - warm)


def rate(found: dict[str, Any]) -> float:
    """Tokens a second; 0 where it was killed or failed."""
    return found["tokens"] / found["seconds"] if found.get("tokens") else 0.0


def compare(args: argparse.Namespace) -> None:
    """Print one table a kind of tokens."""
    limit = memory_bytes(args.limit, 0)
    options = dict(text.split("=", 1) for text in args.option)
    job = {"model": str(args.model), "threads": args.threads, "host_memory": "auto", "options": options}
    whole = job | {"host_memory": "100%", "options": {}}
    with GGUFFile.open(args.model) as file:
        arch = file.architecture
        n_vocab = file.tensors["token_embd.weight"].shape[0]
        shape = int(file.metadata[f"{arch}.block_count"]), int(file.metadata[f"{arch}.expert_count"])
    choose = random.Random(args.seed)
    texts: dict[str, list[int]] = {"random": [choose.randrange(n_vocab) for _ in range(WARM + args.tokens)]}
    start = texts["random"][:4]
    if args.text:
        with LLM.load(args.model, RuntimeOptions(device="cpu", context=CONTEXT, max_sequences=1)) as llm:
            start = llm.tokenizer.encode(args.text.read_text(), add_special=True, parse_special=False)[:64]
    greedy = child("gmoe", whole | {"ids": start, "greedy": WARM + args.tokens}, None)
    texts = {"greedy": greedy["ids"], **texts}
    texts = {name: ids for name, ids in texts.items() if args.only in (None, name)}
    print(f"# {args.model.name}, {args.model.stat().st_size / 1e9:.2f} GB, limit {args.limit}, {args.threads} threads")
    print(f"{date.today()}, {_cpu()}\n")
    for name, ids in texts.items():
        runs: dict[str, list[dict[str, Any]]] = {"gmoe": [], "llama.cpp": []}
        disk, resident = [], []
        for _ in range(args.rounds):
            disk.append(bandwidth(args.model))
            resident.append(child("gmoe", whole | {"ids": ids, "trace": True}, None))
            runs["gmoe"].append(child("gmoe", job | {"ids": ids}, limit))
            if not args.alone:
                runs["llama.cpp"].append(child("llama.cpp", job | {"ids": ids}, limit))
        report(name, runs, disk, resident, shape)


def report(
    name: str,
    runs: dict[str, list[dict[str, Any]]],
    disk: list[float],
    resident: list[dict[str, Any]],
    shape: tuple[int, int],
) -> None:
    """One kind of tokens."""
    ours, theirs = (runs[engine] for engine in ("gmoe", "llama.cpp"))
    fast, slow = (median(map(rate, found)) if found else 0.0 for found in (ours, theirs))
    print(f"## {name} tokens\n\n| | tok/s | peak MiB | |\n|---|---|---|---|")
    for engine, found in runs.items():
        for one in found:
            end = "killed" if one["killed"] else one.get("error", f"{one.get('tokens')} tokens")
            print(f"| {engine} | {rate(one):.2f} | {one.get('peak', 0) >> 20} | {end} |")
    last = ours[-1]
    if slow:
        print(f"\nratio of the medians: {fast / slow:.1f}")
    if not last.get("tokens"):
        return
    tokens, asked = last["tokens"], last["hits"] + last["misses"]
    compute, reads = 1 / median(map(rate, resident)), median(disk)
    print(f"\nhits {last['hits'] / asked:.1%}, {last['bytes_loaded'] / tokens / 1e6:.1f} MB read a token,")
    print(f"stall {1000 * last['stall_seconds'] / tokens:.1f} ms a token; {'; '.join(last['notices'])}")
    print(f"disk {reads / 1e6:.0f} MB/s direct; all in memory {1000 * compute:.1f} ms a token")
    if last["slots"] and last["misses"]:
        each = last["bytes_loaded"] / last["misses"]
        best = belady_misses(resident[-1]["routed"], last["slots"], shape, WARM) * each
        bound = 1 / max(compute, best / reads)
        print(f"Belady reads {best / 1e6:.1f} MB a token: the limit is {bound:.2f} tok/s, {fast / bound:.0%} reached\n")


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{model}, {len(os.sched_getaffinity(0))} cores, Linux {platform.release()}"


def main() -> None:
    """The command line."""
    if sys.argv[1:2] == ["--child"]:
        job = json.loads(Path(sys.argv[3]).read_text())
        print(json.dumps((run_gmoe if sys.argv[2] == "gmoe" else run_llamacpp)(job)))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model", type=Path)
    parser.add_argument("--limit", default="1200MB", help="of the memory cgroup")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=64, help="that are timed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--text", type=Path, help="the greedy text continues this file; without it, random tokens")
    parser.add_argument("--option", action="append", default=[], help="of RuntimeOptions, as evict=lru")
    parser.add_argument("--only", choices=("greedy", "random"))
    parser.add_argument("--alone", action="store_true", help="without llama.cpp")
    compare(parser.parse_args())


if __name__ == "__main__":
    main()
