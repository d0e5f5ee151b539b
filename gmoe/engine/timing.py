"""Timing of forward passes over given tokens, as llama-bench does it: nothing is sampled."""

import time
from collections.abc import Sequence as Ids

from gmoe.engine.engine import Engine
from gmoe.engine.sampling import SamplingParams
from gmoe.engine.scheduler import Turn
from gmoe.engine.sequence import Sequence


def seconds(engine: Engine, ids: Ids[int], depth: int, one_by_one: bool) -> float:
    """Time of the tokens of one fresh sequence after the first `depth`, in chunks or one by one."""
    seq = Sequence(list(ids), SamplingParams())
    try:
        _forward(engine, seq, depth, engine.scheduler.chunk)
        began = time.perf_counter()
        _forward(engine, seq, len(ids), 1 if one_by_one else engine.scheduler.chunk)
        return time.perf_counter() - began
    finally:
        engine.scheduler.blocks.release(seq)


def _forward(engine: Engine, seq: Sequence, until: int, step: int) -> None:
    while seq.n_cached < until:
        count = min(step, until - seq.n_cached)
        if not engine.scheduler.make_room(seq, seq.n_cached + count, keep=[]):
            raise ValueError(f"{seq.n_cached + count} tokens do not fit into the KV cache")
        engine.runner.forward([Turn(seq, count)], [count - 1])
        seq.n_cached += count
