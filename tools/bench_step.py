"""Where a token's time goes while decoding: its three recorded parts, and Python around them.

`python -m tools.bench_step MODEL.gguf -t 2`. Recorded steps and steps that are not take turns (`engine/replay.py`); of
the recorded ones the parts are timed. Medians of rounds of 16 tokens, in us a token.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gmoe.llm import LLM
from gmoe.options import RuntimeOptions

TOKENS = 16


class Timed:
    """A callable that adds up the seconds it takes."""

    def __init__(self, work: Callable[..., Any]):
        self.work, self.seconds = work, 0.0

    def __call__(self, *given: Any) -> Any:
        began = time.perf_counter()
        made = self.work(*given)
        self.seconds += time.perf_counter() - began
        return made

    def taken(self) -> float:
        """Seconds since it was last asked."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def parts(llm: LLM, rounds: int) -> Iterator[tuple[str, float]]:
    """Names and us a token."""
    replay: Any = llm._engine.runner.model
    ids = list(range(1, TOKENS + 1))
    llm.seconds(ids, 0, True)  # builds, and records
    (step,) = [step for step in replay._steps.values() if step is not None]
    tapes = {"embedding": step.begin, "kernels of the blocks": step.tape, "logits": step.end}
    timed = {name: Timed(tape.run) for name, tape in tapes.items()}
    step.begin, step.tape, step.end = (type("Tape", (), {"run": staticmethod(run)})() for run in timed.values())
    found: dict[str, list[float]] = {name: [] for name in ("a recorded step", *timed, "the rest", "not recorded")}
    for _ in range(rounds):
        for work in timed.values():
            work.taken()
        whole = llm.seconds(ids, 0, True)
        taken = {name: work.taken() for name, work in timed.items()}
        replay._most = 0
        unrecorded = llm.seconds(ids, 0, True)
        replay._most = 1
        taken |= {"a recorded step": whole, "the rest": whole - sum(taken.values()), "not recorded": unrecorded}
        for name, seconds in taken.items():
            found[name].append(seconds)
    for name, times in found.items():
        yield name, statistics.median(times) / TOKENS * 1e6


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("-t", "--threads", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=30)
    given = parser.parse_args(arguments)
    options = RuntimeOptions(device="cpu", threads=given.threads, context=256, max_sequences=1)
    print("| of a token | us |\n|---|---:|")
    with LLM.load(given.model, options) as llm:
        for name, microseconds in parts(llm, given.rounds):
            print(f"| {name} | {microseconds:.0f} |")


if __name__ == "__main__":
    main()
