"""The Triton kernels on a CUDA card, in one call: checked compiled, timed, tabulated in Markdown.

python -m tools.gpu_suite --prepare FOLDER     # with a package index: the wheels that a card without one needs
python -m tools.gpu_suite [--wheels FOLDER]    # with a card: installs from FOLDER, builds, checks, times
"""

import argparse
import datetime
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
WHEELS = ("gguf", "nanobind", "scikit-build-core", "pathspec", "ninja", "cmake", "packaging", "pytest", "iniconfig")
WHEELS += ("pluggy", "pygments")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux_2_12_x86_64")
MATRICES = ("Q4_K", "Q6_K", "Q8_0", "MXFP4", "IQ4_XS", "Q2_K", "Q3_K")
SHAPES = ((4096, 4096), (768, 2048), (2048, 768))  # rows, cols: a square one and qwen3moe's experts
ROTATED = 256 << 20  # bytes of weights in turn, past the card's caches
N_EXPERT, N_EXPERT_USED, N_EMBD, N_FF_EXP, TOKENS = 64, 8, 2048, 768, 512


def prepare(folder: Path, python: str) -> None:
    """Download what the card's machine lacks."""
    tags = [word for tag in PLATFORMS for word in ("--platform", tag)]
    run(
        *(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(folder)),
        *("--python-version", python, "--implementation", "cp", *tags, *WHEELS),
    )


def run(*command: str) -> None:
    """A command whose failure ends the suite."""
    print("$", " ".join(command), file=sys.stderr, flush=True)
    subprocess.run(command, cwd=ROOT, check=True)


def build(wheels: Path) -> None:
    """Install the wheels, then gmoe itself, compiled here."""
    pip = (sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps")
    run(*pip, *map(str, sorted(wheels.glob("*.whl"))))
    run(*pip, "--no-build-isolation", "-e", ".")


def seconds(step: Callable[[int], Any], turns: int) -> float:
    """Median seconds of `step(n)`, by the card's own clock, after a warm-up that compiles."""
    import torch

    for n in range(3):
        step(n)
    times = []
    for n in range(turns):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        step(n)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return sorted(times)[len(times) // 2]


def bandwidth_of_a_copy() -> float:
    """Bytes a second that a copy reads and writes together: what a pure reader could read."""
    import torch

    source = torch.empty(ROTATED, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * ROTATED / seconds(lambda _: target.copy_(source), 20)


def random_weights(name: str, rows: int, cols: int) -> Any:
    """Random bytes as weights; their values do not matter to the clock."""
    import torch
    from gmoe.kernels.formats import FORMATS, QuantTensor

    data = torch.randint(0, 256, (rows, FORMATS[name].row_bytes(cols)), dtype=torch.uint8, device="cuda")
    return QuantTensor(data, FORMATS[name], (rows, cols))


def gemv(bandwidth: float) -> Iterator[str]:
    """One token against weights in turn."""
    import torch
    from gmoe.kernels.triton.matmul import matmul

    yield "| format | shape | GB/s | share of the copy's |\n|---|---|---|---|"
    for name in MATRICES:
        for rows, cols in SHAPES:
            one = random_weights(name, rows, cols)
            weights = [random_weights(name, rows, cols) for _ in range(max(1, ROTATED // one.data.nbytes))]
            x = torch.randn(1, cols, dtype=torch.float16, device="cuda")
            rate = one.data.nbytes / seconds(lambda n, x=x, w=weights: matmul(x, w[n % len(w)]), 50)
            yield f"| {name} | {rows} x {cols} | {rate / 1e9:.0f} | {rate / bandwidth:.0%} |"


def grouped() -> Iterator[str]:
    """Many tokens through routed experts, beside torch's dense product of as many operations."""
    import torch
    from gmoe.kernels.formats import FORMATS
    from gmoe.kernels.triton.experts import ExpertBank, SlotMatrix, expert_mlp

    def dense(n_in: int, n_out: int) -> float:
        a = torch.randn(TOKENS * N_EXPERT_USED, n_in, dtype=torch.bfloat16, device="cuda")
        b = torch.randn(n_in, n_out, dtype=torch.bfloat16, device="cuda")
        return seconds(lambda _: a @ b, 20)

    torch_seconds = 2 * dense(N_EMBD, N_FF_EXP) + dense(N_FF_EXP, N_EMBD)
    ids = torch.stack([torch.randperm(N_EXPERT)[:N_EXPERT_USED] for _ in range(TOKENS)]).int().cuda()
    weights = torch.full(ids.shape, 1 / N_EXPERT_USED, device="cuda")
    x = torch.randn(TOKENS, N_EMBD, dtype=torch.bfloat16, device="cuda")
    operations = 3 * 2 * TOKENS * N_EXPERT_USED * N_EMBD * N_FF_EXP
    yield "| format | TFLOP/s | of torch's bf16 |\n|---|---|---|"
    for name in MATRICES:
        form, matrices, at = FORMATS[name], [], 0
        for rows, cols in ((N_FF_EXP, N_EMBD), (N_FF_EXP, N_EMBD), (N_EMBD, N_FF_EXP)):
            matrices.append(SlotMatrix(at, form, rows, cols))
            at += rows * form.row_bytes(cols)
        bank = ExpertBank(torch.randint(0, 256, (N_EXPERT, at), dtype=torch.uint8, device="cuda"), *matrices)
        took = seconds(lambda _, bank=bank: expert_mlp(x, ids, ids, weights, bank), 20)
        yield f"| {name} | {operations / took / 1e12:.1f} | {torch_seconds / took:.0%} |"


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepare", type=Path, metavar="FOLDER")
    parser.add_argument("--python", default="3.12", help="of the card's machine, for --prepare")
    parser.add_argument("--wheels", type=Path, metavar="FOLDER")
    parser.add_argument("--out", type=Path, help="also write the tables into this file")
    given = parser.parse_args(arguments)
    if given.prepare:
        return prepare(given.prepare, given.python)
    if given.wheels:
        build(given.wheels)
    import torch
    import triton

    if not torch.cuda.is_available():
        raise SystemExit("Error: this machine has no CUDA device that torch can use")
    began = time.monotonic()
    os.environ.pop("TRITON_INTERPRET", None)
    run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_kernels_triton.py")
    card = torch.cuda.get_device_name()
    lines = [
        f"# GPU kernels\n\n{datetime.date.today()}, {card}, torch {torch.__version__}, triton {triton.__version__},"
    ]
    lines.append(f"Python {platform.python_version()}; medians.\n\n`python -m tools.gpu_suite`\n\n## One token\n")
    bandwidth = bandwidth_of_a_copy()
    lines.append(f"A copy moves {bandwidth / 1e9:.0f} GB/s, reads and writes together.\n")
    lines += gemv(bandwidth)
    lines.append(f"\n## {TOKENS} tokens, {N_EXPERT} experts, top-{N_EXPERT_USED}, {N_EMBD} / {N_FF_EXP}\n")
    lines += grouped()
    lines.append(f"\nThe whole suite took {time.monotonic() - began:.0f} s.")
    print("\n".join(lines))
    if given.out:
        given.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
