"""measure: reads and computes a few dozen experts of a file, to know what they cost on this machine."""

import random
import time
from collections.abc import Callable
from statistics import median

import torch

from gmoe.experts.cost import Costs
from gmoe.experts.evict.lru import Policy as Lru
from gmoe.experts.expert_id import ExpertId
from gmoe.experts.slots import extents, groups
from gmoe.experts.store import ExpertStore
from gmoe.experts.transfer import open_transfer
from gmoe.gguf.file import GGUFFile
from gmoe.gguf.layout import ExpertLayout
from gmoe.kernels.ops import Activations, ExpertTable, expert_rows

SLOTS = 24
ROWS = 16


def measure(
    file: GGUFFile, layout: ExpertLayout, activations: Activations, seconds: float = 0.4, slots: int = SLOTS
) -> Costs:
    """Half of `seconds` is spent reading, half computing; raises TransferError where the file cannot be read.

    It takes memory for `slots` experts of each kind, and gives it back.
    """
    store = ExpertStore(layout)
    where = extents(layout)
    grouped = groups(layout, where)
    counts = [max(1, min(SLOTS, slots, group.experts)) for group in grouped]
    store.offload(grouped, counts, where, Lru, open_transfer(file.parts, reader="direct"))
    try:
        layers = [group.layers[len(group.layers) // 2] for group in grouped]
        ids = [ExpertId(layer, expert) for layer in layers for expert in range(layout.n_expert)]
        random.Random(0).shuffle(ids)
        many = min(8, *counts)
        alone = _read(store, ids[: len(ids) // 4], 1, seconds / 8)
        together = _read(store, ids[len(ids) // 4 :], many, seconds / 2 - seconds / 8)
        size = sum(layout.expert_bytes(layer) for layer in layers) / len(layers)
        bandwidth = size / together
        _read(store, [ExpertId(layer, 0) for layer in layers if not store.here(layer).any()], 1, seconds)
        one, more = _compute(store, layers, layout, activations, seconds / 2)
    finally:
        store.settle()
        store.close()
    return Costs(bandwidth, max(0.0, alone - together), one, more, size / one)


def _read(store: ExpertStore, ids: list[ExpertId], many: int, seconds: float) -> float:
    """Seconds an expert, `many` asked for at a time; takes them from `ids`, as far as the time or they go."""
    end = time.perf_counter() + seconds
    took, count = 0.0, 0
    while ids and (not count or time.perf_counter() < end):
        batch = [ids.pop() for _ in range(min(many, len(ids)))]
        began = time.perf_counter()
        flying = [ticket for ticket in (store.fetch(id, ()) for id in batch) if ticket is not None]
        count += len(flying)
        while flying:
            arrived = store.wait(flying)
            flying = [ticket for ticket in flying if ticket not in arrived]
        took += time.perf_counter() - began
    return took / max(count, 1)


def _compute(
    store: ExpertStore, layers: list[int], layout: ExpertLayout, activations: Activations, seconds: float
) -> tuple[float, float]:
    """Seconds for one row of one expert, and for each row more."""
    one: list[float] = []
    more: list[float] = []
    for layer in layers:
        here = [e for e in range(layout.n_expert) if store.resident(ExpertId(layer, e))]
        table = store.table(layer)
        half = seconds / 2 / len(layers)
        single, several = (seconds_of_rows(table, here, rows, activations, half) for rows in (1, ROWS))
        one.append(single)
        more.append(max(0.0, (several - single) / (ROWS - 1)))
    return sum(one) / len(one), sum(more) / len(more)


def seconds_of_rows(
    table: ExpertTable,
    here: list[int],
    rows: int,
    activations: Activations,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds an expert of a table takes for so many rows; all that are here in turn, eight a call."""
    x = torch.randn(rows, table.up.cols)
    took: list[float] = []
    at = 0
    end = clock() + seconds
    while len(took) < 4 or clock() < end:
        chosen = [here[(at + n) % len(here)] for n in range(min(8, len(here)))]
        at += len(chosen)
        ids = torch.tensor([chosen] * rows, dtype=torch.int32)
        out = x.new_empty(rows, len(chosen), table.down.rows)
        began = clock()
        expert_rows(x, ids, table, "swiglu" if table.gate is not None else "relu2", activations, out)
        took.append((clock() - began) / len(chosen))
    return median(took[1:])
