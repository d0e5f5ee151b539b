"""Measures which launches of the kernels are fastest on this machine's card, and keeps them for the answers to come.

    python -m tools.gpu_tune                                # what a quarter of an hour is enough for
    python -m tools.gpu_tune --formats Q4_K --minutes 3

Answers look the choices up in tuned.json in gmoe's home and never measure by themselves.
"""

import argparse
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools import gpu_kernels
from tools.gpu_end_to_end import Clock

FORMATS = ("Q4_K", "Q6_K", "Q8_0", "MXFP4")
LEAST = 8.0  # seconds that a case may want


@dataclass(frozen=True)
class Case:
    """One entry of the table: where it is kept, what is shipped, what else is tried, and how a choice runs."""

    key: str
    shipped: Any
    others: list[Any]
    run: Callable[[Any], Any]


def products(name: str, rows: int, cols: int, tokens: int) -> Case:
    """Tokens against weights in turn."""
    import torch
    from gmoe.kernels.triton import tuned
    from gmoe.kernels.triton.matmul import Launch, launch, matmul, row, tile

    one = gpu_kernels.random_weights(name, rows, cols)
    turns = max(1, gpu_kernels.ROTATED // one.data.nbytes)
    weights = [gpu_kernels.random_weights(name, rows, cols) for _ in range(turns)]
    x, m = torch.randn(tokens, cols, device=gpu_kernels.CARD), tile(tokens)
    draw = random.Random(0)
    shipped = launch(m, row(name))
    if m == 1:
        sizes = ((4, 2, 4), (2, 1, 4), (8, 1, 4), (4, 1, 8), (8, 1, 8), (2, 1, 2), (4, 4, 4), (16, 1, 8))
        others = [Launch(n, parts, warps, 1) for n, parts, warps in sizes]
    else:
        others = [shipped._replace(n=n, num_warps=warps) for n, warps in ((32, 4), (64, 8), (128, 8))]
        others += [shipped._replace(persistent=n) for n in (1, 2)]

    def run(how: Any) -> Any:
        return matmul(x, draw.choice(weights), exact=False, how=how)

    return Case(tuned.key("matmul", name, m, rows, cols), shipped, others, run)


def experts(name: str, tokens: int) -> Iterator[Case]:
    """Tokens through their experts: gate and up, then down, each beside the other as shipped."""
    import torch
    from gmoe.kernels.triton.experts import down_key, expert_rows, gate_up_key, launches, tokens_a_tile
    from gmoe.kernels.triton.matmul import Launch

    k, n_expert, width = gpu_kernels.N_EXPERT_USED, gpu_kernels.N_EXPERT, gpu_kernels.N_EMBD
    bank = gpu_kernels.random_bank(name)
    x = torch.randn(tokens, width, device=gpu_kernels.CARD)
    out = torch.empty(tokens, k, width, device=gpu_kernels.CARD)
    draw = [torch.stack([torch.randperm(n_expert)[:k] for _ in range(tokens)]).int() for _ in range(16)]
    draw = [ids.to(gpu_kernels.CARD) for ids in draw]
    m = tokens_a_tile(tokens, k, bank)
    first, second = launches(m, bank)
    if m == 1:
        others = [Launch(n, 1, warps, 1) for n, warps in ((2, 4), (8, 4), (2, 2), (4, 8), (8, 8))]
    else:
        others = [Launch(n, 1, warps, first.num_stages) for n, warps in ((32, 4), (64, 8), (128, 8))]
        others += [first._replace(persistent=n) for n in (1, 2)]
    turn = random.Random(0)

    def run(up: Any, down: Any) -> None:
        ids = turn.choice(draw)
        expert_rows(x, ids, ids, bank, "swiglu", out, exact=False, how=(up, down))

    yield Case(gate_up_key(m, bank), first, others, lambda how: run(how, second))
    yield Case(down_key(m, bank), second, others, lambda how: run(first, how))


def attending(heads: tuple[int, int, int, int], cache: str) -> Case:
    """One token of a sequence against its whole context."""
    from gmoe.kernels.triton import tuned
    from gmoe.kernels.triton.attention import key_of, tiles

    n_head, n_kv, dk, dv = heads
    shipped = tiles(n_head // n_kv, max(dk, dv), 1, True, cache == "f32")
    changes: list[dict[str, int]] = [{"split": 64}, {"split": 256}, {"num_stages": 1}, {"num_stages": 3}]
    changes += [{"keys": 16}, {"split": 512}, {"num_warps": 8}, {"num_warps": 2}]
    others = [shipped._replace(**change) for change in changes]
    attend = gpu_kernels.attention_of(
        heads, cache, gpu_kernels.CONTEXTS[1 % len(gpu_kernels.CONTEXTS)], 1, tuned.SHIPPED
    )[0]
    return Case(key_of(cache, n_head // n_kv, dk, dv, 1, True), shipped, others, lambda how: attend(0, how))


def cases(formats: tuple[str, ...]) -> Iterator[Callable[[], list[Case]]]:
    """All that is tried, the most wanted first; each is built when its turn comes."""
    for name in formats:
        yield lambda name=name: list(experts(name, 1))
        for heads in gpu_kernels.HEADS.values() if name == formats[0] else ():
            for cache in gpu_kernels.CACHES:
                yield lambda heads=heads, cache=cache: [attending(heads, cache)]
        yield lambda name=name: list(experts(name, gpu_kernels.TOKENS))
        for tokens in (1, gpu_kernels.TOKENS):
            for rows, cols in gpu_kernels.SHAPES:
                yield lambda name=name, rows=rows, cols=cols, n=tokens: [products(name, rows, cols, n)]


def tuning(clock: Clock, path: Path, card: str, formats: tuple[str, ...] = FORMATS) -> Iterator[str]:
    """Measures, and keeps in the file what was found; Markdown as it comes."""
    from gmoe.kernels.triton import tuned

    yield "| kernel, format, class of shape | shipped us | best us | choice |\n|---|---|---|---|"
    found: dict[str, Any] = {}
    for build in cases(formats):
        if clock.left() < LEAST:
            yield "| the others | left out: no time | | |"
            break
        for case in build():
            best, took, base = tuned.fastest(
                case.shipped, _while(clock, case.others), case.run, lambda run: gpu_kernels.seconds(lambda _: run(), 20)
            )
            found[case.key] = best
            said = "as shipped" if best == case.shipped else ", ".join(f"{k} {v}" for k, v in best._asdict().items())
            yield f"| {case.key} | {1e6 * base:.1f} | {1e6 * took:.1f} | {said} |"
    tuned.keep(path, card, found)
    yield from (f"\n{notice}." for notice in tuned.read(path, card)[1])


def once(name: str) -> None:
    """Compile what is tried for a format, for the processes to come."""
    for build in cases((name,)):
        for case in build():
            for how in (case.shipped, *case.others):
                with suppress(Exception):  # what a card cannot run is told when it is timed
                    case.run(how)


def _while(clock: Clock, others: list[Any]) -> Iterator[Any]:
    for other in others:
        if clock.left() < LEAST / 2:
            return
        yield other


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), metavar="FORMAT")
    parser.add_argument("--minutes", type=float, default=15)
    given = parser.parse_args(arguments)
    import torch
    from gmoe.kernels.triton.tuned import FILE

    from gmoe.library.home import home

    if not torch.cuda.is_available():
        raise SystemExit("Error: this machine has no CUDA device that torch can use")
    for line in tuning(Clock(60 * given.minutes), home() / FILE, torch.cuda.get_device_name(), tuple(given.formats)):
        print(line, flush=True)


if __name__ == "__main__":
    main()
