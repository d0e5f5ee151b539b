"""A model without weights: its logits are a function of the tokens that it reads back from the paged cache."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from gmoe.layers.batch import Batch

N_VOCAB = 50


def uniform(ids: Sequence[int]) -> np.ndarray:
    return np.zeros(N_VOCAB, dtype=np.float32)


def hashed(ids: Sequence[int]) -> np.ndarray:
    """Other logits for every other beginning, so that one wrong cache slot changes the answer."""
    return np.random.default_rng(list(ids)).normal(0, 2, N_VOCAB).astype(np.float32)


def counting(ids: Sequence[int]) -> np.ndarray:
    """After token n comes n + 1."""
    logits = np.zeros(N_VOCAB, dtype=np.float32)
    logits[(ids[-1] + 1) % N_VOCAB] = 9
    return logits


class ScriptedModel:
    """Writes token ids at the batch's slots and reads each row's whole past through the block tables."""

    def __init__(self, script: Callable[[Sequence[int]], np.ndarray] = hashed):
        self.script = script
        self.batches: list[Batch] = []
        self.fail_next = False

    recurrent = False
    device = torch.device("cpu")

    def new_states(self, n_slots: int) -> None:
        raise NotImplementedError

    def new_cache(self, n_blocks: int, block_size: int, kv_type: str) -> torch.Tensor:
        self.block_size = block_size
        return torch.full((n_blocks * block_size,), -1, dtype=torch.int64)

    def __call__(self, batch: Batch) -> torch.Tensor:
        if self.fail_next:
            self.fail_next = False
            raise OSError("the disk is gone")
        self.batches.append(batch)
        cache: torch.Tensor = batch.kv
        cache[batch.slot_mapping] = batch.token_ids
        wanted = set(batch.output_rows.tolist())
        rows = {}
        for s, table in enumerate(batch.block_tables.long()):
            begin, end = batch.query_starts[s : s + 2].tolist()
            slots = (table[:, None] * self.block_size + torch.arange(self.block_size)).flatten()
            past = cache[slots[: batch.context_lens[s]]].tolist()
            first = int(batch.context_lens[s]) - (end - begin)
            assert batch.positions[begin:end].tolist() == list(range(first, len(past)))
            for row in wanted & set(range(begin, end)):
                rows[row] = self.script(past[: first + row - begin + 1])
        logits = np.stack([rows[row] for row in batch.output_rows.tolist()]) if wanted else np.zeros((0, N_VOCAB))
        return torch.from_numpy(logits)
