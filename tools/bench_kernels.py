"""Speed of the CPU kernels: bytes a second for one token beside a pure read, GFLOP/s for many, and the experts' call.

`python -m tools.bench_kernels --formats Q4_K,Q6_K --threads 1,2`. Where a ggml shared library is named (`--ggml
DIRECTORY`, the `lib` folder of llama-cpp-python), its product of the same shape is timed in turn with ours. With
`--levels avx512,avx2` it is the arithmetic that is timed: one thread, weights that stay in the second-level cache, the
levels in turn, and after them ggml with the same bytes where it is named, also repacked.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import click
import numpy as np
import torch
from gmoe.kernels import cpu_ops
from gmoe.kernels.formats import FORMATS, QuantFormat, QuantTensor
from gmoe.kernels.ops import ExpertMatrix, ExpertTable
from gmoe.kernels.record import Recorder

from tools.ggml import Ggml, Products

ROWS, COLS = 8192, 4096
EXPERTS, CHOSEN, WIDTH, HIDDEN = 64, 8, 2048, 768
ROTATED = 200 << 20  # bytes of weights in turn, so that no cache holds them
CACHED = 320 << 10  # bytes of weights that stay in a cache of the second level
CACHED_COLS, TILE = 2048, 16 * 256  # their columns, and the weights that are unpacked at once
ROUNDS = 50  # of these
CACHED_TOLD = {  # the columns of their table, and digits behind the point
    "one token, GB/s": 1,
    "64 tokens, GFLOP/s": 0,
    "one token's loop, GB/s": 1,
    "a token of a tile, ns": 1,
    "unpacking a tile, ns": 0,
}
FIRST = ["Q4_K", "Q6_K", "Q8_0", "Q4_0", "MXFP4", "IQ4_XS", "IQ3_XXS", "IQ2_XS", "Q5_K", "Q2_K", "Q3_K", "IQ4_NL"]


def blocks(form: QuantFormat, nbytes: int) -> np.ndarray:
    """Random weights with small finite scales."""
    rng = np.random.default_rng(0)
    if form.block_size == 1:
        values = torch.randn(nbytes // form.type_size) * 0.02
        kind = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[form.name]
        return values.to(kind).view(torch.uint8).numpy()
    data = rng.integers(0, 256, (min(nbytes, 4 << 20) // form.type_size, form.type_size), dtype=np.uint8)
    for field in form.fields:
        at = form.offset(field.name)
        if field.dtype == "f2":
            scale = rng.uniform(0.001, 0.002, (len(data), field.count)).astype(np.float16)
            data[:, at : at + field.nbytes] = scale.view(np.uint8)
    if form.name == "MXFP4":
        data[:, 0] = 118
    return np.resize(data.reshape(-1), nbytes)


def medians(
    calls: list[Callable[[], object]], rounds: int, of: Callable[[list[float]], float] = statistics.median
) -> list[float]:
    """Median seconds of each call, taken in turn; or another one `of` them."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, kept in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            kept.append(time.perf_counter() - start)
    return [of(kept) for kept in times]


def bench_matmul(
    form: QuantFormat, tokens: int, threads: int, level: str | None, ggml: Ggml | None
) -> tuple[float, float, float | None, int]:
    """Seconds of our product, of a read of its bytes, of ggml's product; and the bytes."""
    nbytes = ROWS * form.row_bytes(COLS)
    count = -(-ROTATED // nbytes) if tokens == 1 else 2
    arena = blocks(form, nbytes * count).reshape(count, ROWS, -1)
    x, turn = torch.randn(tokens, COLS), [0]

    def weights() -> np.ndarray:
        turn[0] += 1
        return arena[turn[0] % count]

    calls: list[Callable[[], object]] = [
        lambda: cpu_ops.matmul(x, QuantTensor(weights(), form, (ROWS, COLS)), threads=threads, level=level),
        lambda: cpu_ops.read(weights(), threads=threads),
    ]
    peer = None if ggml is None else ggml.products(form, arena, x.numpy())
    if peer is not None:
        calls.append(lambda: peer.compute(threads))
    medians(calls, 2)
    seconds = medians(calls, 15 if tokens == 1 else 5 if tokens < 512 else 3)
    if peer is not None:
        peer.close()
    return seconds[0], seconds[1], seconds[2] if peer else None, nbytes


def expert_table(form: QuantFormat) -> tuple[ExpertTable, np.ndarray]:
    """EXPERTS experts of one type side by side, and their bytes."""
    sizes = [HIDDEN * form.row_bytes(WIDTH), HIDDEN * form.row_bytes(WIDTH), WIDTH * form.row_bytes(HIDDEN)]
    arena = blocks(form, EXPERTS * sum(sizes))
    matrices, at = [], 0
    for size, (rows, cols) in zip(sizes, [(HIDDEN, WIDTH), (HIDDEN, WIDTH), (WIDTH, HIDDEN)], strict=True):
        part = arena[at : at + EXPERTS * size].reshape(EXPERTS, rows, -1)
        address = part.ctypes.data + np.arange(EXPERTS, dtype=np.int64) * size
        matrices.append(ExpertMatrix(form, rows, cols, address, None, arena, part.__getitem__))
        at += EXPERTS * size
    return ExpertTable(*matrices), arena


def bench_experts(form: QuantFormat, tokens: int, threads: int, level: str | None) -> tuple[float, float, int]:
    """Seconds of the call, of a read of the chosen experts' bytes (one token), and those bytes."""
    table, arena = expert_table(form)
    rng = np.random.default_rng(3)
    x, out = torch.randn(tokens, WIDTH), torch.empty(tokens, CHOSEN, WIDTH)
    nbytes = arena.nbytes * CHOSEN // EXPERTS
    starts = [i * (arena.nbytes // EXPERTS) for i in range(EXPERTS - CHOSEN)]

    def call() -> None:
        ids = np.stack([rng.permutation(EXPERTS)[:CHOSEN] for _ in range(tokens)]).astype(np.int32)
        cpu_ops.expert_rows(x, torch.from_numpy(ids), table, "swiglu", out, threads=threads, level=level)

    def read() -> None:
        start = starts[int(rng.integers(len(starts)))]
        cpu_ops.read(arena[start : start + nbytes], threads=threads)

    medians([call, read], 2)
    ours, reading = medians([call, read], 41 if tokens == 1 else 3)
    return ours, reading, nbytes


def bench_cached(form: QuantFormat, levels: list[str], rounds: int, ggml: Ggml | None = None) -> dict[str, list[float]]:
    """Of each level, of ggml and of ggml "repacked" where it can: at best, by one thread, without Python between calls.

    GB/s of weights at one token, GFLOP/s of 64; and of the loops alone, which is what the rows after the first 16 take
    (no call, no rounding of activations): GB/s at one token, ns that a tile of 16 rows x 256 takes for one more token,
    and ns that it takes before (unpacking).
    """
    row_bytes = form.row_bytes(CACHED_COLS)
    rows = max(2, CACHED // row_bytes // 16) * 16
    data = blocks(form, rows * row_bytes).reshape(rows, row_bytes)
    repeats = {1: 20, 16: 4, 64: 2}  # by the number of tokens

    def recorded(level: str, x: torch.Tensor, count: int) -> Callable[[], object]:
        w = QuantTensor(data[:count], form, (count, CACHED_COLS))
        with Recorder() as tape:
            for _ in range(repeats[len(x)]):
                cpu_ops.matmul(x, w, threads=1, level=level)
        return lambda: tape.run() if len(x) else None  # x must stay

    calls: dict[tuple[str, int, int], Callable[[], object]] = {}
    peers: list[Products] = []
    for tokens, count in product(repeats, (16, rows)):
        x = torch.randn(tokens, CACHED_COLS)
        for level in levels:
            calls[level, tokens, count] = recorded(level, x, count)
        for name, make in {} if ggml is None else {"ggml": ggml.products, "repacked": ggml.repacked}.items():
            made = make(form, data[None, :count], x.numpy(), repeats[tokens])
            if made is not None:
                peers.append(made)
                calls[name, tokens, count] = partial(made.compute, 1)
    medians(list(calls.values()), 2)
    times = medians(list(calls.values()), rounds, min)
    for peer in peers:
        peer.close()
    taken = {key: seconds / repeats[key[1]] for key, seconds in zip(calls, times, strict=True)}
    found = {}
    for name in dict.fromkeys(name for name, _, _ in calls):
        one, some, many = (taken[name, tokens, rows] - taken[name, tokens, 16] for tokens in repeats)
        tiles, token = (rows - 16) * CACHED_COLS / TILE, (many - some) / 48
        found[name] = [
            1e-9 * rows * row_bytes / taken[name, 1, rows],
            2e-9 * rows * CACHED_COLS * 64 / taken[name, 64, rows],
            1e-9 * (rows - 16) * row_bytes / one,
            1e9 * token / tiles,
            1e9 * (some - 16 * token) / tiles,
        ]
    return found


def print_cached(names: list[str], levels: list[str], ggml: Ggml | None) -> None:
    """The table of `--levels`."""
    behind = "" if ggml is None else "; behind the bar: ggml (repacked)"
    print(
        f"One thread, {CACHED >> 10} KB of weights in {CACHED_COLS} columns; {' / '.join(levels)}; "
        f"the best of {ROUNDS} rounds{behind}.\n"
    )
    print(f"| type | {' | '.join(CACHED_TOLD)} |\n|---|" + "---|" * len(CACHED_TOLD), flush=True)
    for name in names:
        found, cells = bench_cached(FORMATS[name], levels, ROUNDS, ggml), []
        for n, (column, digits) in enumerate(CACHED_TOLD.items()):
            told = {who: f"{values[n]:.{digits}f}" for who, values in found.items()}
            cell = " / ".join(told[level] for level in levels)
            if "ggml" in told and "tile" not in column:  # it has none
                cell += f" \\| {told['ggml']}" + (f" ({told['repacked']})" if "repacked" in told else "")
            plain = FORMATS[name].block_size == 1  # numbers that are not unpacked
            cells.append("" if plain and "tile" in column else cell)
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


@click.command()
@click.option("--formats", default=",".join(FIRST), help="comma-separated, or 'all'")
@click.option("--threads", default="1,2")
@click.option("--tokens", default="1,8,32,64,512")
@click.option("--level", default=None, help="a kernel level; default: the best here")
@click.option("--levels", default=None, help="comma-separated, or 'all': these in turn, weights in the cache")
@click.option(
    "--ggml", type=click.Path(exists=True, path_type=Path), help="folder with libggml-base.so, libggml-cpu.so"
)
@click.option("--experts/--no-experts", default=True)
def main(
    formats: str, threads: str, tokens: str, level: str | None, levels: str | None, ggml: Path | None, experts: bool
) -> None:
    """Print a Markdown table: one row a format, "a/b" for the numbers of threads; ggml's figure behind a bar."""
    names = [n for n in FORMATS if cpu_ops.supported(n)] if formats == "all" else formats.split(",")
    peer = None if ggml is None else Ggml(ggml)
    if levels:
        return print_cached(names, cpu_ops.levels() if levels == "all" else levels.split(","), peer)
    counts, sizes = [int(n) for n in threads.split(",")], [int(n) for n in tokens.split(",")]
    heads = ["GB/s (of read)" if n == 1 else f"GFLOP/s M={n}" for n in sizes]
    heads += ["experts, 1 token: GB/s (of read)", "experts, 512: GFLOP/s"] if experts else []
    print("| type | " + " | ".join(heads) + " |\n|" + "---|" * (len(heads) + 1), flush=True)
    for name in names:
        form, cells = FORMATS[name], []
        for size in sizes:
            ours, theirs = [], []
            for n in counts:
                mine, reading, other, nbytes = bench_matmul(form, size, n, level, peer)
                work = nbytes / 1e9 if size == 1 else 2e-9 * ROWS * COLS * size
                ours.append(f"{work / mine:.1f} ({reading / mine:.2f})" if size == 1 else f"{work / mine:.0f}")
                if other is not None:
                    theirs.append(f"{work / other:.1f}" if size == 1 else f"{work / other:.0f}")
            cells.append(" / ".join(ours) + (" \\| " + " / ".join(theirs) if theirs else ""))
        if experts:
            one, many = [], []
            for n in counts:
                mine, reading, nbytes = bench_experts(form, 1, n, level)
                one.append(f"{nbytes / mine / 1e9:.1f} ({reading / mine:.2f})")
                mine, _, _ = bench_experts(form, 512, n, level)
                many.append(f"{6e-9 * WIDTH * HIDDEN * CHOSEN * 512 / mine:.0f}")
            cells += [" / ".join(one), " / ".join(many)]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
