"""Rehearsal: on a device, all that steps may launch is launched once before the first request, so that none compiles.

Passes of doubling sizes meet every choice that kernels make by size. They are nobody's: experts, statistics and whoever
listens are left alone, and the cache's blocks that they write are empty again.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import cast

import numpy as np
import torch

from gmoe.engine.engine import Engine
from gmoe.engine.replay import Replay
from gmoe.experts.device import Device
from gmoe.experts.device_dispatch import DeviceDispatch
from gmoe.kernels.kv import BLOCK
from gmoe.layers.batch import Batch
from gmoe.layers.kv_cache import PagedKVCache
from gmoe.layers.recurrent_cache import RecurrentCache

LOGITS = 128  # rows whose logits are computed: more meet the same kernels, and a vocabulary is wide
WORTH_SAYING = 1.0  # seconds
RECORDED = 4  # sequences whose step is recorded now; of more, and of other numbers, when they come


def passes(chunk: int, sequences: int, blocks: int) -> list[list[int]]:
    """Rows of each sequence, pass by pass: steps of several answers, prompts, and both together."""
    counts = [[1] * n for n in _doubling(sequences)]
    counts += [[n] for n in _doubling(chunk) if n > 1]
    counts += [[2] + [1] * (n - 1) for n in _doubling(sequences) if n > 1]
    return [rows for rows in counts if sum(-(-n // BLOCK) for n in rows) <= blocks]


def batch_of(rows: Sequence[int], kv: PagedKVCache, states: RecurrentCache | None, n_vocab: int) -> Batch:
    """The first `rows` tokens of fresh sequences, one after another in the cache's first blocks and states."""
    taken = [-(-n // BLOCK) for n in rows]
    starts = [0, *accumulate(taken)]
    width, total = max(taken), sum(rows)
    ids = (np.arange(total) * 7919 + n_vocab // 3) % n_vocab  # what comes first is often for control
    positions = [position for n in rows for position in range(n)]
    slots = [start * BLOCK + position for start, n in zip(starts, rows, strict=False) for position in range(n)]
    none = np.full(len(rows), -1)
    tables = [[*range(start, start + n), *[0] * (width - n)] for start, n in zip(starts, taken, strict=False)]
    return Batch(
        numbers=np.array([ids, positions, slots], dtype=np.int64),
        tables=np.array(tables, dtype=np.int32),
        lengths=rows,
        begins=[0, *accumulate(rows)],
        rows=range(min(total, LOGITS)),
        kv=kv,
        states=states,
        slots=None if states is None else np.array([none, np.arange(len(rows)), none, 0 * none], dtype=np.int32),
    )


def rehearse(
    engine: Engine,
    device: Device,
    notices: list[str],
    progress: Callable[[str], None] = lambda said: None,
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Launch what the engine's model may launch on its device, and record the steps of one token a sequence.

    `progress` hears how far it is, `notices` how long it took where that was over a second. Where memory ends the
    runner's rescue makes room, as in an answer. What else kernels raise is raised.
    """
    began, runner, scheduler = clock(), engine.runner, engine.scheduler
    plan = passes(scheduler.chunk, scheduler.max_sequences, runner.kv.layers[0].keys.shape[0])
    said = f"preparing kernels for {device.name}: {{}} of {len(plan)} passes"
    while True:
        try:
            _run(cast(Replay, runner.model), runner.kv, runner.states, plan, lambda n: progress(said.format(n)))
            break
        except torch.OutOfMemoryError:
            pass  # only behind this the failed pass lets go of what it held
        runner.rescue()
    if (seconds := clock() - began) > WORTH_SAYING:
        notices.append(
            f"kernels for {device.name} took {seconds:.0f} s to prepare; compiled ones are kept for next time"
        )


def _run(
    model: Replay,
    kv: PagedKVCache,
    states: RecurrentCache | None,
    plan: list[list[int]],
    said: Callable[[int], None],
) -> None:
    dispatch, n_vocab = model.model.dispatch, model.model.n_vocab
    assert isinstance(dispatch, DeviceDispatch)
    stats, hits = dispatch.store.stats, dispatch.store.stats.hits
    try:
        dispatch.instead = dispatch.launch
        for n, rows in enumerate(plan):
            said(n)
            model(batch_of(rows, kv, states, n_vocab))
        dispatch.instead = None
        for rows in [rows for rows in plan if rows == [1] * len(rows) and len(rows) <= RECORDED and dispatch.steady]:
            for _ in range(2):  # the second is recorded
                model(batch_of(rows, kv, states, n_vocab))
        dispatch.device.synchronize()
    finally:
        dispatch.instead, stats.hits = None, hits
        _empty(kv, max(sum(-(-n // BLOCK) for n in rows) for rows in plan))


def _empty(kv: PagedKVCache, blocks: int) -> None:
    for layer in kv.layers:
        for part in (layer.keys, layer.values, layer.key_scales, layer.value_scales):
            if part is not None:
                part[:blocks].zero_()


def _doubling(most: int) -> Iterable[int]:
    """1, 2, 4 and so on, and the most."""
    sizes = [1]
    while 2 * sizes[-1] < most:
        sizes.append(2 * sizes[-1])
    return [*sizes, most] if most > 1 else sizes
