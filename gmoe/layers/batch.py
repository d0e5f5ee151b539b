"""Batch: what goes down with every call of the model; nothing is global."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from gmoe.kernels.ops import Turns
from gmoe.layers.kv_cache import PagedKVCache
from gmoe.layers.recurrent_cache import Paths, RecurrentCache, StatePaths


@dataclass(frozen=True)
class Batch:
    """One step's tokens of S sequences, T in all; what says how much there is to do stays on the CPU."""

    token_ids: Tensor  # [T] int64, CPU
    positions: Tensor  # [T] int64
    slot_mapping: Tensor  # [T] int64, where this step's k and v go
    block_tables: Tensor  # [S, max_blocks] int32
    context_lens: Tensor  # [S] int32, after this step, CPU
    query_starts: Tensor  # [S + 1] int32, CPU
    output_rows: Tensor  # [R] int64, the rows whose logits are wanted, ascending
    kv: PagedKVCache
    starts: Tensor | None = None  # query_starts where the model runs, if that is a device
    states: RecurrentCache | None = None  # of a model with recurrent layers
    paths: StatePaths | None = None  # its sequences' slots there

    @cached_property
    def turns(self) -> Turns:
        """Whose rows these are, as the kernels of attention take it."""
        return Turns(self.positions, self.block_tables, self.context_lens, self.query_starts, self.starts)

    @cached_property
    def routes(self) -> Paths:
        """The slots of states, as the kernels of recurrent layers take them."""
        assert self.paths is not None
        return Paths(self.query_starts if self.starts is None else self.starts, *self.paths)

    def wanted(self, x: Tensor) -> Tensor:
        """Of rows [T, D] those whose logits are wanted [R, D]; x itself where these are all."""
        return x if len(self.output_rows) == len(x) else x.index_select(0, self.output_rows)

    def on(self, device: torch.device) -> "Batch":
        """The same with its indices where the model runs."""
        if device.type == "cpu":
            return self
        names = ("positions", "slot_mapping", "block_tables", "output_rows")
        moved = {name: getattr(self, name).to(device) for name in names}
        paths = self.paths and self.paths.to(device)
        return replace(self, **moved, starts=self.query_starts.to(device), paths=paths)
