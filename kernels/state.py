"""One recurrent layer's states as the kernels see them: a slot holds all that a sequence's past is to the layer."""

from copy import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from gmoe.kernels.kv import zeros
from torch import Tensor


@dataclass(frozen=True)
class StateShape:
    """What one layer keeps of a sequence, float32: the last `taps` inputs of its convolutions, and a matrix a head."""

    taps: int
    channels: int
    heads: int = 0
    dk: int = 0
    dv: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of a slot."""
        return 4 * (self.taps * self.channels + self.heads * self.dk * self.dv)


class StateLayer:
    """inputs [slots, taps, channels], the oldest first, and matrices [slots, heads, dk, dv]."""

    def __init__(self, shape: StateShape, n_slots: int, device: Any = None):
        self.shape = shape
        self.inputs = zeros((n_slots, shape.taps, shape.channels), torch.float32, device)
        self.matrices = zeros((n_slots, shape.heads, shape.dk, shape.dv), torch.float32, device)

    def part(self, first: int, count: int) -> "StateLayer":
        """The same slots, as one of several convolutions sees them: `count` channels from `first` on."""
        part = copy(self)
        part.inputs = self.inputs[:, :, first : first + count]
        return part


class Paths(NamedTuple):
    """From which slots a step's S sequences come and into which they go; -1 is none.

    A sequence without a source begins from zeros. Its state after the step is left in `target`, and that after
    `kept_after` of its rows, 1 to all, in `kept`. Source and target may be one slot; a slot that one sequence goes into
    is no other's. On a device a target may be -1 as well: nothing is left then.
    """

    starts: Tensor  # [S + 1] int32, whose rows these are
    source: Tensor  # [S] int32
    target: Tensor  # [S] int32
    kept: Tensor  # [S] int32
    kept_after: Tensor  # [S] int32
