"""Engine: add, abort, step; it knows token ids only."""

from collections.abc import Sequence as Ids
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from gmoe.engine.block_manager import BlockManager
from gmoe.engine.sampler import Logprobs
from gmoe.engine.sampling import SamplingParams
from gmoe.engine.scheduler import Scheduler, Turn
from gmoe.engine.sequence import Sequence
from gmoe.layers.batch import Batch
from gmoe.layers.kv_cache import KvType

BLOCK_SIZE = 32


class Model(Protocol):
    """What the engine needs of a model."""

    def __call__(self, batch: Batch) -> torch.Tensor: ...

    def new_cache(self, n_blocks: int, block_size: int, kv_type: KvType) -> Any: ...


class StepOutput(NamedTuple):
    """One new token of one sequence."""

    seq: Sequence
    token_id: int
    finish_reason: str | None
    logprobs: Logprobs | None


class Engine:
    """Runs sequences of at most `context` tokens, `max_sequences` of them together, prompts in chunks."""

    def __init__(self, model: Model, context: int, max_sequences: int, kv_type: KvType, chunk: int = 512):
        self.model = model
        self.context = context
        blocks = BlockManager(max_sequences * -(-context // BLOCK_SIZE), BLOCK_SIZE)
        self.kv = model.new_cache(len(blocks.free), BLOCK_SIZE, kv_type)
        self.scheduler = Scheduler(blocks, max_sequences, chunk)

    def add(self, seq: Sequence) -> None:
        """Queue a sequence; a prompt that is empty or longer than the context is a `ValueError`."""
        if not seq.ids:
            raise ValueError("the prompt is empty: there is no token to begin with")
        if len(seq.ids) >= self.context:
            raise ValueError(f"the prompt has {len(seq.ids)} tokens, the context holds {self.context}")
        self.scheduler.add(seq)

    def abort(self, seq: Sequence) -> None:
        """End a sequence now."""
        seq.finish_reason = seq.finish_reason or "abort"
        self.scheduler.remove(seq)

    def step(self) -> list[StepOutput]:
        """One forward pass; a sequence whose prompt is not yet through gives no output."""
        turns = self.scheduler.schedule()
        if not turns:
            return []
        whole = [turn.seq.n_cached + turn.tokens == len(turn.seq.ids) for turn in turns]
        logits = self._forward(turns, [row for row, done in zip(_last_rows(turns), whole, strict=True) if done])
        rows = iter(logits)
        outputs = []
        for turn, done in zip(turns, whole, strict=True):
            turn.seq.n_cached += turn.tokens
            if done:
                outputs.append(self._choose(turn.seq, next(rows)))
        return outputs

    def logits(self, ids: Ids[int]) -> np.ndarray:
        """Logits [len(ids), n_vocab] float32 of one fresh sequence, every position."""
        seq = Sequence(list(ids), SamplingParams())
        if not seq.ids or len(seq.ids) > self.context:
            raise ValueError(f"{len(seq.ids)} tokens do not fit a context of {self.context}")
        parts = []
        try:
            while seq.n_cached < len(seq.ids):
                count = min(self.scheduler.chunk, len(seq.ids) - seq.n_cached)
                if not self.scheduler.blocks.grow(seq, seq.n_cached + count):
                    raise ValueError("the KV cache is full of other sequences")
                parts.append(self._forward([Turn(seq, count)], list(range(count))))
                seq.n_cached += count
        finally:
            self.scheduler.blocks.release(seq)
        return np.concatenate(parts)

    def _forward(self, turns: list[Turn], rows: list[int]) -> np.ndarray:
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        starts = [0]
        for seq, count in turns:
            span = range(seq.n_cached, seq.n_cached + count)
            ids += seq.ids[span.start : span.stop]
            positions += span
            slots += [seq.blocks[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for p in span]
            starts.append(len(ids))
        tables = torch.zeros(len(turns), max(len(turn.seq.blocks) for turn in turns), dtype=torch.int32)
        for row, turn in zip(tables, turns, strict=True):
            row[: len(turn.seq.blocks)] = torch.tensor(turn.seq.blocks, dtype=torch.int32)
        batch = Batch(
            torch.tensor(ids),
            torch.tensor(positions),
            torch.tensor(slots),
            tables,
            torch.tensor([turn.seq.n_cached + turn.tokens for turn in turns], dtype=torch.int32),
            torch.tensor(starts, dtype=torch.int32),
            torch.tensor(rows, dtype=torch.int64),
            self.kv,
        )
        return self.model(batch).float().numpy()

    def _choose(self, seq: Sequence, logits: np.ndarray) -> StepOutput:
        token = seq.sampler.sample(logits, seq.ids)
        seq.ids.append(token)
        if token in seq.end_ids:
            seq.finish_reason = "stop"
        elif len(seq.ids) - seq.n_prompt >= (seq.params.max_tokens or self.context) or len(seq.ids) >= self.context:
            seq.finish_reason = "length"
        if seq.finish_reason:
            self.scheduler.remove(seq)
        return StepOutput(seq, token, seq.finish_reason, seq.sampler.logprobs(logits, token))


def _last_rows(turns: list[Turn]) -> list[int]:
    ends, at = [], 0
    for turn in turns:
        at += turn.tokens
        ends.append(at - 1)
    return ends
