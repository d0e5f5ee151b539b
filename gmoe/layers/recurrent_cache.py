"""RecurrentCache: what recurrent layers keep of sequences instead of keys and values; a slot is one sequence's past."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from gmoe.kernels.recurrent import Paths, StateLayer, StateShape
from gmoe.layers.kv_cache import KvShape

__all__ = ["SSM_KEYS", "Paths", "RecurrentCache", "RecurrentLayer", "StatePaths", "StateShape"]

# of gated delta nets and of Mamba-2
SSM_KEYS = frozenset(
    f"ssm.{key}" for key in ("conv_kernel", "inner_size", "state_size", "time_step_rank", "group_count")
)


class RecurrentLayer:
    """In a block's place of attention: it keeps nothing of a token, and `state_shape` of a sequence."""

    kv_shape = KvShape(0, 0, 0)
    state_shape: StateShape


class RecurrentCache:
    """The recurrent layers' states, `n_slots` of each, by the number of the layer."""

    def __init__(self, shapes: Mapping[int, StateShape], n_slots: int, device: torch.device):
        self.layers = {layer: StateLayer(shape, n_slots, device) for layer, shape in shapes.items()}


class StatePaths(NamedTuple):
    """Slots [S] int32 of the batch's sequences, as `kernels.state.Paths` has them."""

    source: Tensor
    target: Tensor
    kept: Tensor
    kept_after: Tensor
