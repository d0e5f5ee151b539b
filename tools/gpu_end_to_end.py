"""A model on a card at several sizes of the expert cache, beside llama.cpp, and over a slow link; for `gpu_suite`."""

import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from tools.shapes import SHAPES, Shape

SHARES = (0.1, 0.25, 0.5, 1.0)  # of the experts, on the card
MISSES = ("load", "balance")
SLOW_LINK = 6e9  # bytes a second
SHAPE = replace(SHAPES["qwen3-30b-a3b"], layer=12, expert=64, vocab=32000)


@dataclass(frozen=True)
class Sizes:
    """What is run: a prompt, and tokens generated after a shorter one."""

    prompt: int = 2048
    depth: int = 64
    generate: int = 32
    threads: int = 0
    vocabulary: int = 30000

    def ids(self) -> list[int]:
        """Random tokens, so that routing is as scattered as it can be: the hardest case for a cache."""
        draw = random.Random(7)
        return [draw.randrange(self.vocabulary) for _ in range(max(self.prompt, self.depth + self.generate))]


@dataclass(frozen=True)
class Row:
    """What one setting gave; tokens a second."""

    setting: str
    decode: float
    prefill: float
    hits: float  # share of the experts asked for while decoding
    copied: float  # MiB a token while decoding
    load: float  # seconds


class SlowLink:
    """A device whose every copy runs several times over, so that the link is as slow as that."""

    def __init__(self, device: Any, times: int):
        self._device, self._times = device, times

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def upload(self, into: Any, source: Any, after: Any) -> Any:
        """As the device's own."""
        for _ in range(self._times - 1):
            self._device.upload(into, source, after)
        return self._device.upload(into, source, after)


class Clock:
    """The time that is left of a limit in seconds."""

    def __init__(self, limit: float):
        self.end = time.monotonic() + limit

    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()


@contextmanager
def loaded(path: Path, share: float | None, slower: int = 1, **options: Any) -> Iterator[Any]:
    """The model on the card with this share of its experts; 0: one of each kind, None: on the CPU."""
    from gmoe import llm
    from gmoe.experts.budget import budget_of
    from gmoe.experts.device_slots import device_groups
    from gmoe.gguf.file import GGUFFile
    from gmoe.gguf.hparams import Hparams
    from gmoe.gguf.layout import ExpertLayout
    from gmoe.options import RuntimeOptions

    if share is not None:
        with GGUFFile.open(path) as file:
            hparams = Hparams.from_metadata(file.metadata, str(path))
            layout = ExpertLayout(file, hparams.n_layer, hparams.n_expert)
            groups, _ = device_groups(layout)
            slots = sum(max(1, round(share * group.experts)) * group.slot_bytes for group in groups)
            asked = budget_of(file, layout, hparams, "auto").fixed + slots
        options = {"device": "cuda"} | options | ({} if share == 1.0 else {"gpu_memory": str(asked)})
    options = {"device": "cpu"} | options
    opened = llm.open_device

    def open_slower(name: str) -> Any:
        device = opened(name)
        return device if device is None or slower == 1 else SlowLink(device, slower)

    with patch.object(llm, "open_device", open_slower), llm.LLM.load(path, RuntimeOptions(**options)) as model:
        yield model


def ours(path: Path, share: float, miss: str, sizes: Sizes, slower: int = 1) -> Row:
    """One setting, the better of two times after one that warms up."""
    ids, context = sizes.ids(), max(sizes.prompt, sizes.depth + sizes.generate) + 1
    options = {"context": context, "max_sequences": 1, "threads": sizes.threads, "miss": miss, "prefetch": "none"}
    began = time.perf_counter()
    with loaded(path, share, slower, **options) as model:
        load = time.perf_counter() - began
        decode = lambda: model.seconds(ids[: sizes.depth + sizes.generate], sizes.depth, True)  # noqa: E731
        decode()
        before = model.stats["gpu"]
        taken = min(decode() for _ in range(2))
        after = model.stats["gpu"]
        reading = min(model.seconds(ids[: sizes.prompt], 0, False) for _ in range(2))
    asked = sum(after[name] - before[name] for name in ("hits", "misses"))
    copied = (after["bytes_loaded"] - before["bytes_loaded"]) / (2 * (sizes.depth + sizes.generate)) / 2**20
    hits = (after["hits"] - before["hits"]) / max(asked, 1)
    return Row(f"{share:.0%}, {miss}", sizes.generate / taken, sizes.prompt / reading, hits, copied, load)


def rows(path: Path, share: float, miss: str, sizes: Sizes, slower: int = 1) -> dict[str, Any]:
    """`ours`, as JSON takes it."""
    return asdict(ours(path, share, miss, sizes, slower))


class Apart:
    """Who runs a model in a process of its own: where that crashes, it is told where, and the next begins anew."""

    def __init__(self, path: Path, sizes: Sizes):
        self.given = json.dumps({"path": str(path), "sizes": asdict(sizes)})
        self.process: subprocess.Popen[str] | None = None

    def ask(self, what: str, *how: Any) -> Any:
        """What `agreement` or `rows` says; ValueError where they or their process fail."""
        if self.process is None:
            self.said = tempfile.TemporaryFile("w+")
            command = [sys.executable, "-X", "faulthandler", "-m", "tools.gpu_end_to_end", self.given]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.said}
            self.process = subprocess.Popen(command, **pipes, text=True, cwd=Path(__file__).parents[1])
        assert self.process.stdin and self.process.stdout
        with suppress(BrokenPipeError):  # it has ended since it answered
            self.process.stdin.write(json.dumps([what, *how]) + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if line:
            failed, found = json.loads(line)
            if failed:
                raise ValueError(found)
            return found
        code = self.process.wait()
        self.said.seek(0)
        told = self.said.read().splitlines()
        self.close()
        frames = [line.strip() for line in told if line.startswith(("Fatal", "  File"))][:6]
        raise ValueError(f"its process ended with {code}: {'; '.join(frames or told[-3:])}")

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None
            self.said.close()


def serve(given: str) -> None:
    """The process apart: a JSON line of standard input asks, one of standard output answers."""
    known = json.loads(given)
    path, sizes = Path(known["path"]), Sizes(**known["sizes"])
    for line in sys.stdin:
        what, *how = json.loads(line)
        try:
            answer = False, agreement(path, sizes) if what == "agreement" else rows(path, *how[:2], sizes, *how[2:])
        except Exception as error:
            answer = True, f"{type(error).__name__}: {error}"
        print(json.dumps(answer), flush=True)


def peer(path: Path, experts_on_cpu: int, sizes: Sizes) -> dict[str, float]:
    """llama.cpp with the experts of so many layers on the CPU; an error of its process is a ValueError."""
    command = [sys.executable, "-m", "tools.gpu_peer", str(path), "--experts-on-cpu", str(experts_on_cpu)]
    for name in ("prompt", "depth", "generate", "vocabulary"):
        command += [f"--{name}", str(getattr(sizes, name))]
    command += ["--threads", str(sizes.threads)] if sizes.threads else []
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    if done.returncode:
        raise ValueError(f"llama.cpp ended with {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def agreement(path: Path, sizes: Sizes, tokens: int = 32) -> list[str]:
    """How far the card's logits are from the CPU's."""
    ids = sizes.ids()[:tokens]
    given: dict[str, Any] = {"context": 256, "max_sequences": 1, "threads": sizes.threads}
    with loaded(path, None, **given) as model:
        want = model.logits(ids).astype(np.float64)
    got, stepped, refused = {}, {}, list[str]()
    for share in (1.0, 0.25):
        with loaded(path, share, miss="load", **given) as model:
            got[share] = model.logits(ids).astype(np.float64)
            stepped[share] = model.logits(ids, 1)
            refused += [notice for notice in model.notices if "kernel by kernel" in notice]
    p, q = (x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)) - x.max(-1, keepdims=True)
            for x in (want, got[1.0]))  # fmt: skip
    kld = float((np.exp(p) * (p - q)).sum(-1).mean())
    same = float((want.argmax(-1) == got[1.0].argmax(-1)).mean())
    equal, steps_equal = ("equal" if np.array_equal(x[1.0], x[0.25]) else "NOT EQUAL" for x in (got, stepped))
    return [
        f"Against the CPU, whose activations are rounded to 8 bits: mean KL divergence {kld:.2e}, the same first token "
        f"in {same:.0%} of {tokens}.",
        f"All experts on the card and a quarter of them (miss=load): bits {equal}.",
        f"The same token by token, as one graph where all are on the card: bits {steps_equal}.",
        *refused,
    ]


def link(device: Any) -> float:
    """Bytes a second from pinned memory to the card."""
    size = 64 << 20
    source, target = device.pinned(size), device.empty(size)
    device.upload(target, source, None).synchronize()
    began = time.perf_counter()
    device.upload(target, source, None).synchronize()
    return size / (time.perf_counter() - began)


def model_file(folder: Path, shape: Shape = SHAPE, types: str = "Q4_K_M") -> Path:
    """The synthetic model, written where it is not there yet."""
    from tools.synth_model import synthesize  # needs what the suite installs first

    path = folder / f"{shape.architecture}-{shape.layer}x{shape.expert}-{types}.gguf"
    if not path.exists():
        begun = path.with_suffix(".part")
        synthesize(begun, shape, types)
        begun.rename(path)
    return path


def once(folder: Path) -> None:
    """Write the model and compile what it needs, for the processes to come: loading checks and rehearses it."""
    with loaded(model_file(folder), 1.0, context=Sizes().prompt + 1, max_sequences=1):
        pass


def tables(
    path: Path, sizes: Sizes, clock: Clock, link_rate: float, layers: int, ask: Callable[..., Any]
) -> Iterator[str]:
    """Markdown, as it comes; what there is no time for is said. `ask` is an `Apart`'s, or does the same here."""
    yield from _attempt("logits", clock, lambda: list(ask("agreement")))
    theirs: dict[int, dict[str, float]] = {}
    on_cpu = {share: layers - int(share * layers) for share in SHARES}
    yield "\n| llama.cpp: layers whose experts are on the CPU | decode tok/s | prefill tok/s |\n|---|---|---|"
    for count in sorted({*on_cpu.values(), layers}):

        def run(count: int = count) -> list[str]:
            theirs[count] = found = peer(path, count, sizes)
            return [f"| {count} of {layers} | {found['decode']:.1f} | {found['prefill']:.0f} |"]

        yield from _attempt(f"{count} of {layers}", clock, run)
    yield "\n| experts on the card, miss | decode tok/s | prefill tok/s | hits | MiB copied a token | load s "
    yield "| decode : -ncmoe | : -cmoe | prefill : -cmoe |\n" + "|---" * 9 + "|"
    for share in SHARES:
        for miss in MISSES if share < 1 else MISSES[:1]:
            same, all_on_cpu = theirs.get(on_cpu[share]), theirs.get(layers)
            line = lambda share=share, miss=miss, a=same, b=all_on_cpu: [_line(Row(**ask("rows", share, miss)), a, b)]  # noqa: E731
            yield from _attempt(f"{share:.0%}, {miss}", clock, line)
    slower = max(1, round(link_rate / SLOW_LINK))
    yield f"\nThe link moves {link_rate / 1e9:.1f} GB/s; {slower} times slower, as at {SLOW_LINK / 1e9:.0f} GB/s:\n"
    yield "| experts on the card, miss | decode tok/s | prefill tok/s | hits | MiB copied a token | load s |"
    yield "|---" * 6 + "|"
    for share, miss in ((0.0, "cpu"), (0.1, "auto"), (0.25, "auto"), (0.5, "auto"), (0.5, "balance")):
        line = lambda share=share, miss=miss: [_line(Row(**ask("rows", share, miss, slower)))]  # noqa: E731
        yield from _attempt(f"{share:.0%}, {miss}", clock, line)


def _line(row: Row, same: dict[str, float] | None = None, on_cpu: dict[str, float] | None = None) -> str:
    cells = [row.setting, f"{row.decode:.1f}", f"{row.prefill:.0f}", f"{row.hits:.0%}", f"{row.copied:.1f}"]
    cells.append(f"{row.load:.1f}")
    for there, name in ((same, "decode"), (on_cpu, "decode"), (on_cpu, "prefill")):
        cells += [f"{getattr(row, name) / there[name]:.2f}"] if there else []
    return f"| {' | '.join(cells)} |"


def _attempt(what: str, clock: Clock, run: Callable[[], list[str]], least: float = 10.0) -> Iterator[str]:
    """Its lines, or one that says why there are none: the suite goes on."""
    if clock.left() < least:
        yield f"| {what} | left out: no time |"
        return
    try:
        yield from run()
    except Exception as error:
        yield f"| {what} | failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''} |"


if __name__ == "__main__":
    serve(sys.argv[1])
