"""Runner: turns of sequences -> one Batch -> logits."""

from collections.abc import Callable
from collections.abc import Sequence as Ids
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
import torch

from gmoe.engine.scheduler import Turn
from gmoe.layers.batch import Batch
from gmoe.layers.kv_cache import KvType


class Model(Protocol):
    """What the engine needs of a model."""

    def __call__(self, batch: Batch) -> torch.Tensor: ...  # [R, n_vocab] float32

    def hidden(self, batch: Batch) -> torch.Tensor: ...  # [R, n_embd] float32

    def new_cache(self, n_blocks: int, block_size: int, kv_type: KvType) -> Any: ...


class Runner:
    """A model and its KV cache; `observers` hear of every pass before it runs."""

    def __init__(self, model: Model, n_blocks: int, block_size: int, kv_type: KvType):
        self.model = model
        self.block_size = block_size
        self.kv = model.new_cache(n_blocks, block_size, kv_type)
        self.observers: list[Callable[[Ids[Turn]], None]] = []
        self.checks: list[Callable[[], None]] = []  # after a pass: raise where its numbers are worth nothing
        self.rescue: Callable[[], None] = _give_up  # makes room where a pass found none, or raises

    def forward(self, turns: Ids[Turn], rows: Ids[int]) -> np.ndarray:
        """Compute the turns' tokens, whose blocks are there; logits [len(rows), n_vocab] float32 of these rows."""
        return self._run(self.model, self._batch(turns, rows))

    def hidden(self, turns: Ids[Turn], rows: Ids[int]) -> np.ndarray:
        """The same, but the final hidden states [len(rows), n_embd] float32."""
        return self._run(self.model.hidden, self._batch(turns, rows))

    def _run(self, model: Callable[[Batch], torch.Tensor], batch: Batch) -> np.ndarray:
        """A pass that finds too little memory is run again after `rescue`: it writes the same rows into the cache."""
        while True:
            try:
                result: np.ndarray = model(batch).float().cpu().numpy()
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
        for seq, count in turns:
            span = range(seq.n_cached, seq.n_cached + count)
            ids += seq.ids[span.start : span.stop]
            positions += span
            slots += [seq.blocks[p // size] * size + p % size for p in span]
        width = max(len(turn.seq.blocks) for turn in turns)
        tables = [turn.seq.blocks + [0] * (width - len(turn.seq.blocks)) for turn in turns]
        return Batch(
            token_ids=torch.tensor(ids, dtype=torch.int64),
            positions=torch.tensor(positions, dtype=torch.int64),
            slot_mapping=torch.tensor(slots, dtype=torch.int64),
            block_tables=torch.tensor(tables, dtype=torch.int32),
            context_lens=torch.tensor([turn.seq.n_cached + turn.n_new for turn in turns], dtype=torch.int32),
            query_starts=torch.tensor([0, *accumulate(turn.n_new for turn in turns)], dtype=torch.int32),
            output_rows=torch.tensor(rows, dtype=torch.int64),
            kv=self.kv,
        )


def _give_up() -> None:
    raise MemoryError("a pass found too little memory")
