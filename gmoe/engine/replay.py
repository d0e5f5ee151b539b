"""Replay: a step of one token is recorded once for each reach of the context, and then runs without Python."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gmoe.kernels.kv import BLOCK
from gmoe.kernels.ops import reach, record
from gmoe.layers.batch import Batch
from gmoe.models.decoder import Decoder


class Replay:
    """A model of the engine's that answers bit for bit as its decoder does.

    Recorded are steps of one row on the CPU while all experts are used from the map and nothing hears of routings; an
    architecture that computes with torch between the kernels is never replayed.
    """

    def __init__(self, model: Decoder):
        self.model = model
        self._steps: dict[tuple[int, int], _Step | None] = {}  # by reach and threads; None: has run once, unrecorded
        self._never = model.device.type != "cpu"

    def __call__(self, batch: Batch) -> Tensor:
        """Logits [R, n_vocab] float32 of `batch.output_rows`; the cache has this step's rows afterwards."""
        with torch.inference_mode():
            return self.model.logits(self.hidden(batch))

    def hidden(self, batch: Batch) -> Tensor:
        """Normed rows [R, n_embd] float32 of `batch.output_rows`."""
        one = len(batch.token_ids) == 1 == len(batch.output_rows)
        if self._never or not one or not self.model.dispatch.steady:
            return self.model.hidden(batch)
        key = reach(int(batch.context_lens)), torch.get_num_threads()
        if key not in self._steps:  # a first pass builds what the others find
            self._steps[key] = None
            return self.model.hidden(batch)
        step = self._steps[key]
        with torch.inference_mode():
            if step is not None:
                return step.run(batch)
            step = _Step(self.model, batch, key[0])
            if step.tape is None:
                self._never = True
            else:
                self._steps[key] = step
            return step.y.clone()

    def new_cache(self, *args: Any) -> Any:
        """An empty cache for this model."""
        return self.model.new_cache(*args)


class _Step:
    """A pass of one row in memory of its own: recorded, and run again for other tokens at other places."""

    def __init__(self, model: Decoder, batch: Batch, reach: int):
        self.model = model
        self.x = model.embed(batch).clone()  # [1, D]
        self.own = replace(
            batch,
            positions=batch.positions.clone(),
            slot_mapping=batch.slot_mapping.clone(),
            block_tables=torch.zeros(1, -(-reach // BLOCK), dtype=torch.int32),
        )
        self._place(batch)
        before = model.dispatch.store.stats.hits
        self.y, self.tape = record(lambda: model.through(self.x, self.own))  # [1, D]
        self.hits = model.dispatch.store.stats.hits - before

    def run(self, batch: Batch) -> Tensor:
        """The normed row [1, D]."""
        assert self.tape is not None
        self.x.copy_(self.model.embed(batch))
        self._place(batch)
        self.tape.run()
        self.model.dispatch.store.stats.hits += self.hits
        return self.y.clone()

    def _place(self, batch: Batch) -> None:
        self.own.positions.copy_(batch.positions)
        self.own.slot_mapping.copy_(batch.slot_mapping)
        blocks, own = batch.block_tables, self.own.block_tables
        own[:, : blocks.shape[1]] = blocks[:, : own.shape[1]]
