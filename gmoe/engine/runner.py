"""Runner: turns of sequences -> one Batch -> logits."""

from collections.abc import Callable
from collections.abc import Sequence as Ids
from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
import torch

from gmoe.engine.scheduler import Turn
from gmoe.layers.batch import Batch
from gmoe.layers.kv_cache import KvType


class Model(Protocol):
    """What the engine needs of a model; one that is `recurrent` also has states, on its `device`."""

    @property
    def recurrent(self) -> bool: ...

    @property
    def device(self) -> torch.device: ...

    def __call__(self, batch: Batch) -> torch.Tensor | np.ndarray: ...  # [R, n_vocab] float32

    def hidden(self, batch: Batch) -> torch.Tensor: ...  # [R, n_embd] float32

    def new_cache(self, n_blocks: int, block_size: int, kv_type: KvType) -> Any: ...

    def new_states(self, n_slots: int) -> Any: ...


class Runner:
    """A model, its KV cache and, if it is recurrent, `n_slots` for states; `observers` hear of each pass first."""

    def __init__(self, model: Model, n_blocks: int, block_size: int, kv_type: KvType, n_slots: int = 0):
        self.model = model
        self.block_size = block_size
        self.kv = model.new_cache(n_blocks, block_size, kv_type)
        self.states = model.new_states(n_slots) if n_slots else None
        self.observers: list[Callable[[Ids[Turn]], None]] = []
        self.checks: list[Callable[[], None]] = []  # after a pass: raise where its numbers are worth nothing
        self.turn: Callable[[], AbstractContextManager[None]] = nullcontext  # to be had for a pass
        self.rescue: Callable[[], None] = _give_up  # makes room where a pass found none, or raises

    def forward(self, turns: Ids[Turn], rows: Ids[int]) -> np.ndarray:
        """Compute the turns' tokens, whose blocks are there; logits [len(rows), n_vocab] float32 of these rows.

        They are for use before the next pass, whose may lie in their place.
        """
        with self.turn():
            return self._run(self.model, self._batch(turns, rows))

    def hidden(self, turns: Ids[Turn], rows: Ids[int]) -> np.ndarray:
        """The same, but the final hidden states [len(rows), n_embd] float32."""
        with self.turn():
            return self._run(self.model.hidden, self._batch(turns, rows))

    def _run(self, model: Callable[[Batch], torch.Tensor | np.ndarray], batch: Batch) -> np.ndarray:
        """A pass that finds too little memory is run again after `rescue`: it writes the same rows into the cache."""
        while True:
            try:
                found = model(batch)
                result = found if isinstance(found, np.ndarray) else _numbers(found)
                for check in self.checks:
                    check()
                return result
            except torch.OutOfMemoryError:
                pass  # only behind this the failed pass lets go of what it held
            self.rescue()

    def _batch(self, turns: Ids[Turn], rows: Ids[int]) -> Batch:
        for observe in self.observers:
            observe(turns)
        size = self.block_size
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        for seq, count, draft in turns:
            span = range(seq.n_cached, seq.n_cached + count)
            ids += [*seq.ids[span.start : span.stop], *draft]
            positions += span
            slots += [seq.blocks[p // size] * size + p % size for p in span]
        width = max(len(turn.seq.blocks) for turn in turns)
        tables = [turn.seq.blocks + [0] * (width - len(turn.seq.blocks)) for turn in turns]
        return Batch(
            numbers=np.array([*ids, *positions, *slots], dtype=np.int64).reshape(3, len(ids)),
            tables=np.array(tables, dtype=np.int32),
            lengths=[turn.seq.n_cached + turn.n_new for turn in turns],
            begins=[*accumulate((turn.n_new for turn in turns), initial=0)],
            rows=rows,
            kv=self.kv,
            states=self.states,
            slots=None if self.states is None else np.array([turn.seq.path for turn in turns], dtype=np.int32).T.copy(),
        )


def _numbers(found: torch.Tensor) -> np.ndarray:
    if not found.is_cpu or found.dtype is not torch.float32:
        found = found.float().cpu()
    numbers: np.ndarray = found.numpy()
    return numbers


def _give_up() -> None:
    raise MemoryError("a pass found too little memory")
