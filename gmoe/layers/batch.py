"""Batch: what goes down with every call of the model; nothing is global."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gmoe.kernels.ops import Turns
from gmoe.layers.kv_cache import PagedKVCache
from gmoe.layers.recurrent_cache import Paths, RecurrentCache, StatePaths

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Batch:
    """One step's tokens of S sequences, T in all: numbers, and the tensors of them that a model asks for.

    A tensor on the CPU is the memory of its numbers. What says how much there is to do stays there.
    """

    numbers: NDArray[np.int64]  # [3, T]: token ids, positions, and the slots where this step's k and v go
    tables: NDArray[np.int32]  # [S, max_blocks]: the blocks of a sequence
    lengths: Sequence[int]  # [S], after this step
    begins: Sequence[int]  # [S + 1]: the first row of each sequence, and behind the last
    rows: Sequence[int]  # [R]: those whose logits are wanted, ascending
    kv: PagedKVCache
    states: RecurrentCache | None = None  # of a model with recurrent layers
    slots: NDArray[np.int32] | None = None  # [4, S]: its sequences' there, as `StatePaths` has them
    device: torch.device = CPU  # where the model runs

    @cached_property
    def token_ids(self) -> Tensor:
        """[T] int64, CPU."""
        return torch.from_numpy(self.numbers[0])

    @cached_property
    def positions(self) -> Tensor:
        """[T] int64."""
        return self._there(self.numbers[1])

    @cached_property
    def slot_mapping(self) -> Tensor:
        """[T] int64."""
        return self._there(self.numbers[2])

    @cached_property
    def block_tables(self) -> Tensor:
        """[S, max_blocks] int32."""
        return self._there(self.tables)

    @cached_property
    def context_lens(self) -> Tensor:
        """[S] int32, CPU."""
        return torch.from_numpy(np.array(self.lengths, dtype=np.int32))

    @cached_property
    def query_starts(self) -> Tensor:
        """[S + 1] int32, CPU."""
        return torch.from_numpy(np.array(self.begins, dtype=np.int32))

    @cached_property
    def output_rows(self) -> Tensor:
        """[R] int64."""
        return self._there(np.array(self.rows, dtype=np.int64))

    @cached_property
    def starts(self) -> Tensor | None:
        """`query_starts` where the model runs, if that is a device."""
        return None if self.device.type == "cpu" else self.query_starts.to(self.device)

    @cached_property
    def paths(self) -> StatePaths | None:
        """The sequences' slots in `states`."""
        return None if self.slots is None else StatePaths(*map(self._there, self.slots))

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
        return x if len(self.rows) == len(x) else x.index_select(0, self.output_rows)

    def on(self, device: torch.device) -> "Batch":
        """The same for a model that runs there; a device is given all of it at once, before any kernel."""
        if device == self.device:
            return self
        there = replace(self, device=device)
        _ = there.turns, there.slot_mapping, there.output_rows, there.paths
        return there

    def _there(self, numbers: NDArray[np.int64] | NDArray[np.int32]) -> Tensor:
        return torch.from_numpy(numbers).to(self.device)
