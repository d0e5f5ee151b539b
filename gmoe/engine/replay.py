"""Replay: a step of a token a sequence is recorded once for each reach of the context, and then runs without Python."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from gmoe.experts.device import DeviceError
from gmoe.kernels.kv import BLOCK
from gmoe.kernels.ops import lender, reach, record
from gmoe.layers.batch import Batch
from gmoe.layers.recurrent_cache import StatePaths
from gmoe.models.decoder import Decoder


class Tape(Protocol):
    """What a device has kept of some work."""

    def run(self) -> None:
        """Do the same to what now lies where its inputs lay."""


TOGETHER = 16  # sequences whose step a device records: kernels and the cuts of attention are the same up to here
KEPT = 32  # steps that are kept; each is some hundred launches, and their memory is one for all
LATER = 16  # steps until it is tried again to record, where others were at work on the device
Record = Callable[[Callable[[], Tensor]], tuple[Tensor, Tape | None]]


class Replay:
    """A model of the engine's that answers bit for bit as its decoder does.

    Recorded, by the kernels of the CPU or as `Device.record` does, are steps of one row while every expert is at hand
    and nothing hears of routings; on a device also those of a few sequences, a row each, for each number of them. The
    last `KEPT` that were wanted are kept. An architecture that computes with torch between the CPU's kernels never is
    recorded. `notices` are told where a device does not record. While it does nobody else may be at work there, which
    `alone` sees to; else it is put off.
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
        self._most = 1 if model.device.type == "cpu" else TOGETHER  # sequences whose step is recorded
        model.dispatch.store.moving.append(self._steps.clear)

    def __call__(self, batch: Batch) -> Tensor:
        """Logits [R, n_vocab] float32 of `batch.output_rows`; the cache has this step's rows afterwards."""
        with torch.inference_mode():
            return self.model.logits(self.hidden(batch))

    def hidden(self, batch: Batch) -> Tensor:
        """Normed rows [R, n_embd] float32 of `batch.output_rows`."""
        rows = len(batch.token_ids)
        step_of_each = rows == len(batch.block_tables) == len(batch.output_rows)
        if rows > self._most or not step_of_each or not self.model.dispatch.steady:
            with lender(rows, self.model.device):
                return self.model.hidden(batch)
        key = rows, reach(max(batch.context_lens.tolist())), torch.get_num_threads()
        if key not in self._steps:  # a first pass builds what the others find
            while len(self._steps) >= KEPT:
                del self._steps[next(iter(self._steps))]
            self._steps[key] = None
            return self.model.hidden(batch)
        with torch.inference_mode():
            step = self._steps[key] = self._steps.pop(key)  # now the last that was wanted
            if step is not None:
                return step.run(batch)
            if self._later:
                self._later -= 1
                return self.model.hidden(batch)
            with self._alone() as alone:
                if alone:
                    return self._recorded(key, batch)
            self._later = LATER
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

    def _recorded(self, key: "_Key", batch: Batch) -> Tensor:
        try:
            step = _Step(self.model, batch, key[1], self.record)
        except DeviceError as error:
            self.notices.append(str(error))
            self._most = key[0] - 1
            return self.model.hidden(batch)
        if step.tape is None:
            self._most = key[0] - 1
        else:
            self._steps[key] = step
        return step.y.clone()


_Key = tuple[int, int, int]  # sequences, reach, threads


class _Step:
    """A pass of a row a sequence in memory of its own: recorded, and run again for other tokens at other places."""

    def __init__(self, model: Decoder, batch: Batch, reach: int, record: Record):
        self.model = model
        blocks = torch.zeros(len(batch.token_ids), -(-reach // BLOCK), dtype=torch.int32)
        lengths = torch.full((len(blocks),), reach, dtype=torch.int32)  # kernels see how far a row goes by its position
        own = replace(batch, context_lens=lengths, block_tables=blocks).on(model.device)
        paths = own.paths and StatePaths(*(part.clone() for part in own.paths))
        self.own = replace(own, positions=own.positions.clone(), slot_mapping=own.slot_mapping.clone(), paths=paths)
        self.x = model.embed(batch).clone()  # [S, D]
        self._place(batch)
        stats = model.dispatch.store.stats
        before, passes = stats.hits, list[int]()

        def work() -> Tensor:
            passes.append(stats.hits)
            return model.through(self.x, self.own)

        self.y, self.tape = record(work)  # [S, D]
        self.hits = stats.hits - passes[-1]
        stats.hits = before + self.hits  # a device may have run it more than once

    def run(self, batch: Batch) -> Tensor:
        """The normed rows [S, D]."""
        assert self.tape is not None and batch.kv is self.own.kv
        self.x.copy_(self.model.embed(batch))
        self._place(batch)
        self.tape.run()
        self.model.dispatch.store.stats.hits += self.hits
        return self.y.clone()

    def _place(self, batch: Batch) -> None:
        own, blocks = self.own, batch.block_tables
        for mine, given in zip(own.paths or (), batch.paths or (), strict=True):
            mine.copy_(given)
        own.positions.copy_(batch.positions)
        own.slot_mapping.copy_(batch.slot_mapping)
        width = min(blocks.shape[1], own.block_tables.shape[1])
        own.block_tables[:, :width].copy_(blocks[:, :width])
