"""Replay: a step of a token a sequence is recorded once for each reach of the context, and then runs without Python."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gmoe.experts.device import DeviceError
from gmoe.kernels.kv import BLOCK
from gmoe.kernels.ops import lender, reach, record
from gmoe.layers.batch import Batch
from gmoe.models.decoder import Decoder


class Tape(Protocol):
    """What a device has kept of some work."""

    def run(self) -> None:
        """Do the same to what now lies where its inputs lay."""


TOGETHER = 16  # sequences whose step is recorded: a device's kernels and cuts of attention are the same up to here
KEPT = 32  # steps that are kept; each is some hundred launches, and their memory is one for all
LATER = 16  # steps until it is tried again to record, where others were at work on the device
Record = Callable[[Callable[[], Tensor]], tuple[Tensor, Tape | None]]
Floats = NDArray[np.float32]


class Replay:
    """A model of the engine's that answers bit for bit as its decoder does.

    Recorded, by the kernels of the CPU or as `Device.record` does, are steps of a few sequences, a row each, for each
    number of them, while every expert is at hand and nothing hears of routings. The last `KEPT` that were wanted are
    kept. An architecture that computes with torch between the CPU's kernels never is recorded. `notices` are told where
    a device does not record. While it does nobody else may be at work there, which `alone` sees to; else it is put off.
    """

    def __init__(
        self,
        model: Decoder,
        record: Record = record,
        notices: list[str] | None = None,
        alone: Callable[[], AbstractContextManager[bool]] = lambda: nullcontext(True),
    ):
        self.model, self.record, self.notices = model, record, [] if notices is None else notices
        self._steps: dict[_Key, _Step | None] = {}  # in the order in which they were wanted; None: ran once, unrecorded
        self._alone, self._later = alone, 0
        self._most = TOGETHER  # sequences whose step is recorded
        self._never: set[_Key] = set()  # steps that do what is not recorded
        model.dispatch.store.moving.append(self._steps.clear)

    def __call__(self, batch: Batch) -> Tensor | Floats:
        """Logits [R, n_vocab] float32 of the wanted rows; the cache has this step's rows afterwards.

        They are for use before the next step, whose may lie in their place: to copy them would take as long as what a
        recording saves.
        """
        n = batch.numbers.shape[1]
        step_of_each = n == len(batch.tables) == len(batch.rows)
        if n > self._most or not step_of_each or not self.model.dispatch.steady:
            return self._unrecorded(batch)
        key = n, reach(max(batch.lengths)), torch.get_num_threads()
        if key in self._never:
            return self._unrecorded(batch)
        if key not in self._steps:  # a first pass builds what the others find
            while len(self._steps) >= KEPT:
                del self._steps[next(iter(self._steps))]
            self._steps[key] = None
            return self._unrecorded(batch)
        step = self._steps[key] = self._steps.pop(key)  # now the last that was wanted
        if step is not None:
            return step.run(batch)
        if self._later:
            self._later -= 1
            return self._unrecorded(batch)
        with self._alone() as alone:
            if alone:
                with torch.inference_mode():
                    return self._recorded(key, batch)
        self._later = LATER
        return self._unrecorded(batch)

    def hidden(self, batch: Batch) -> Tensor:
        """Normed rows [R, n_embd] float32 of the wanted rows; never recorded."""
        with lender(batch.numbers.shape[1], self.model.device):
            return self.model.hidden(batch)

    def new_cache(self, *args: Any) -> Any:
        """An empty cache for this model."""
        return self.model.new_cache(*args)

    def new_states(self, n_slots: int) -> Any:
        """Empty states for this model, if it is recurrent."""
        return self.model.new_states(n_slots)

    @property
    def recurrent(self) -> bool:
        """As its decoder is."""
        return self.model.recurrent

    @property
    def device(self) -> torch.device:
        """Of its decoder."""
        return self.model.device

    def _unrecorded(self, batch: Batch) -> Tensor:
        with torch.inference_mode():
            return self.model.logits(self.hidden(batch))

    def _recorded(self, key: "_Key", batch: Batch) -> Tensor | Floats:
        try:
            step = _Step(self.model, batch, key[1], self.record)
        except DeviceError as error:
            self.notices.append(str(error))
            self._most = key[0] - 1
            return self._unrecorded(batch)
        if step.tape is None:
            self._never.add(key)
        else:
            self._steps[key] = step
        return step.logits()


_Key = tuple[int, int, int]  # sequences, reach, threads


class _Step:
    """A pass of a row a sequence in memory of its own: recorded, and run again for other tokens at other places.

    A device records the blocks; the table of tokens is not there. What it keeps does not know of it, so that its memory
    goes with it.
    """

    def __init__(self, model: Decoder, batch: Batch, reach: int, record_blocks: Record):
        n = len(batch.tables)
        here: Record = record if model.device.type == "cpu" else _called
        self.model = model
        self.own = own = replace(
            batch,
            numbers=batch.numbers.copy(),
            tables=np.zeros((n, -(-reach // BLOCK)), dtype=np.int32),
            lengths=[reach] * n,  # kernels see how far a row goes by its position
            slots=None if batch.slots is None else batch.slots.copy(),
        )
        self._place(batch)
        there = own.on(model.device)
        pairs = [(there.positions, own.positions), (there.slot_mapping, own.slot_mapping)]
        pairs += [(there.block_tables, own.block_tables), *zip(there.paths or (), own.paths or (), strict=True)]
        self.uploads = [] if there is own else pairs
        self.stats = stats = model.dispatch.store.stats
        before, passes = stats.hits, list[int]()

        def blocks() -> Tensor:
            passes.append(stats.hits)
            return model.through(x, there)

        self.x, self.begin = here(lambda: model.embed(own))  # [S, D]
        x = self.x
        self.y, self.tape = record_blocks(blocks)  # [S, D], normed
        self.hits = stats.hits - passes[-1]
        stats.hits = before + self.hits  # a device may have run it more than once
        self.end: Tape | None = None
        if n == 1 and model.device.type == "cpu":  # the logits of several rows would take much memory
            y = self.y
            logits, self.end = record(lambda: model.logits(y))
            self._logits: Floats = logits.numpy()

    def run(self, batch: Batch) -> Tensor | Floats:
        """The logits [S, n_vocab], perhaps where those of the next run will lie."""
        assert self.tape is not None and batch.kv is self.own.kv
        self._place(batch)
        if self.begin is None:
            self._embed()
        else:
            self.begin.run()
        self.tape.run()
        self.stats.hits += self.hits
        if self.end is not None:
            self.end.run()
        return self.logits()

    def logits(self) -> Tensor | Floats:
        """Those of the last run."""
        if self.end is not None:
            return self._logits
        with torch.inference_mode():
            return self.model.logits(self.y)

    def _embed(self) -> None:
        with torch.inference_mode():
            for there, own in self.uploads:
                there.copy_(own)
            self.x.copy_(self.model.embed(self.own))

    def _place(self, batch: Batch) -> None:
        own = self.own
        own.numbers[...] = batch.numbers
        width = min(batch.tables.shape[1], own.tables.shape[1])
        own.tables[:, :width] = batch.tables[:, :width]
        if own.slots is not None and batch.slots is not None:
            own.slots[...] = batch.slots


def _called(work: Callable[[], Tensor]) -> tuple[Tensor, None]:
    """In the place of recording."""
    return work(), None
