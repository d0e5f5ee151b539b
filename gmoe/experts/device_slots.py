"""Slots on a device: one uint8 tensor a group, as the kernels read it, and when each slot was used last."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gmoe.experts.device import Device, Event
from gmoe.experts.expert_id import ExpertId
from gmoe.experts.slots import Extent, Group, Read, groups
from gmoe.gguf.layout import ExpertLayout, Span
from gmoe.kernels.ops import ExpertBank, ExpertTable, SlotMatrix
from gmoe.kernels.reference import as_tensor

ALIGNED = 256  # bytes, at which a matrix begins


class DeviceSlot(NamedTuple):
    """Where an expert is copied to, and what reads of its predecessor it must not overtake."""

    bytes: Tensor
    used: Event | None


def device_extent(spans: Sequence[Span]) -> Extent:
    """An expert's matrices one after another, each by one copy."""
    reads: list[Read] = []
    at = 0
    for span in spans:
        reads.append(Read(span.part, span.offset, span.nbytes, at, span.nbytes))
        at += -(-span.nbytes // ALIGNED) * ALIGNED
    return Extent(tuple(reads), tuple(read.at for read in reads), at)


def device_groups(layout: ExpertLayout) -> tuple[list[Group], dict[ExpertId, Extent]]:
    """The groups of a file on a device, and how each expert fills a slot there."""
    where = {
        ExpertId(layer, expert): device_extent([span for span in layout.spans(layer, expert) if span is not None])
        for layer in layout.layers
        for expert in range(layout.n_expert)
    }
    return groups(layout, where), where


class DeviceArena:
    """`counts[n]` slots of each group; torch.OutOfMemoryError where the device has not so much."""

    def __init__(self, device: Device, groups: Sequence[Group], counts: Sequence[int]):
        self.device = device
        sizes = [(count, group.slot_bytes) for count, group in zip(counts, groups, strict=True)]
        self.data = [device.empty(count * size).view(count, size) for count, size in sizes]
        self._used: dict[tuple[int, int], Event] = {}

    def slot(self, group: int, slot: int) -> DeviceSlot:
        """Where to copy an expert to."""
        return DeviceSlot(self.data[group][slot], self._used.get((group, slot)))

    def read(self, group: int, slots: Sequence[int]) -> None:
        """Kernels that read these slots have been launched."""
        mark = self.device.mark()
        self._used.update(((group, slot), mark) for slot in slots)

    def bank(self, group: int, table: ExpertTable, starts: Sequence[int], biases: Mapping[str, Tensor]) -> ExpertBank:
        """A layer's experts as the kernels find them in the slots of its group."""
        named = {"gate": table.gate, "up": table.up, "down": table.down}
        present = [(name, matrix) for name, matrix in named.items() if matrix is not None]
        made = {
            name: SlotMatrix(start, matrix.format, matrix.rows, matrix.cols, biases.get(name))
            for (name, matrix), start in zip(present, starts, strict=True)
        }
        return ExpertBank(self.data[group], made.get("gate"), made["up"], made["down"], len(table.up.address))


def bank_of(device: Device, table: ExpertTable, experts: Sequence[int] = (0,)) -> ExpertBank:
    """A bank of as many slots, with these experts of a table in order, copied to the device."""
    named = {"gate": table.gate, "up": table.up, "down": table.down}
    made: dict[str, SlotMatrix] = {}
    parts: list[Tensor] = []
    at = 0
    for name, matrix in named.items():
        if matrix is not None:
            bias = None if matrix.bias is None else device.send(torch.from_numpy(matrix.bias))
            made[name] = SlotMatrix(at, matrix.format, matrix.rows, matrix.cols, bias)
            data = torch.stack([as_tensor(matrix.data(expert)).reshape(-1) for expert in experts])
            parts.append(torch.nn.functional.pad(data, (0, -data.shape[1] % ALIGNED)))
            at += parts[-1].shape[1]
    data = device.send(torch.cat(parts, 1))
    return ExpertBank(data, made.get("gate"), made["up"], made["down"], len(experts))
