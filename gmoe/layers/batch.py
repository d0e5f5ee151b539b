"""Batch: what goes down with every call of the model; nothing is global."""

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from gmoe.kernels.ops import Turns
from gmoe.layers.kv_cache import PagedKVCache


@dataclass(frozen=True)
class Batch:
    """One step's tokens of S sequences, T in all."""

    token_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64
    slot_mapping: Tensor  # [T] int64, where this step's k and v go
    block_tables: Tensor  # [S, max_blocks] int32
    context_lens: Tensor  # [S] int32, after this step
    query_starts: Tensor  # [S + 1] int32
    output_rows: Tensor  # [R] int64, the rows whose logits are wanted
    kv: PagedKVCache

    @cached_property
    def turns(self) -> Turns:
        """Whose rows these are, as the kernels of attention take it."""
        return Turns(self.positions, self.block_tables, self.context_lens, self.query_starts)
