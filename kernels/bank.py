"""A bank of expert slots on a device, as its kernels read it: one uint8 tensor, and where each matrix begins."""

from dataclasses import dataclass

from gmoe.kernels.formats import QuantFormat
from torch import Tensor


@dataclass(frozen=True)
class SlotMatrix:
    """Where one of gate, up and down begins in every slot, and what it is; `bias` is float32 [experts, rows]."""

    offset: int  # bytes
    format: QuantFormat
    rows: int
    cols: int
    bias: Tensor | None = None


@dataclass(frozen=True)
class ExpertBank:
    """Equal slots of one tier: `data` uint8 [slots, slot_bytes]; `experts` of a layer share its tokens, 0: unknown."""

    data: Tensor
    gate: SlotMatrix | None
    up: SlotMatrix
    down: SlotMatrix
    experts: int = 0
