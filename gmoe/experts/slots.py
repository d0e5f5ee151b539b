"""Slots: anonymous memory taken once, in groups of equal places, each fit for aligned reads of any of its experts."""

import mmap
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gmoe.experts.expert_id import ExpertId
from gmoe.gguf.layout import ExpertLayout, Span

PIECE = 1 << 20
PAGE = 4096  # direct reads begin and end at its multiples, in the file and in memory


class Read(NamedTuple):
    """One read of a file into a slot."""

    part: int
    offset: int  # in the file, a multiple of PAGE
    nbytes: int  # a multiple of PAGE; the file may end inside
    at: int  # in the slot, a multiple of PAGE
    needed: int  # so many of the bytes must come


class Extent(NamedTuple):
    """How an expert fills a slot."""

    reads: tuple[Read, ...]
    starts: tuple[int, ...]  # of each of its matrices in the slot
    nbytes: int  # of the slot


def extent(spans: Sequence[Span]) -> Extent:
    """The reads of an expert's matrices: aligned, those that touch in the file as one."""
    starts = [0] * len(spans)
    reads: list[Read] = []
    for n in sorted(range(len(spans)), key=lambda n: spans[n][:2]):
        span = spans[n]
        begin, end = span.offset // PAGE * PAGE, span.offset + span.nbytes
        last = reads[-1] if reads else None
        if last is not None and last.part == span.part and begin <= last.offset + last.nbytes:
            read = last._replace(nbytes=_up(end - last.offset), needed=end - last.offset)
            reads[-1] = read
        else:
            read = Read(span.part, begin, _up(end - begin), last.at + last.nbytes if last else 0, end - begin)
            reads.append(read)
        starts[n] = read.at + span.offset - read.offset
    pieces = tuple(piece for read in reads for piece in _pieces(read))
    return Extent(pieces, tuple(starts), reads[-1].at + reads[-1].nbytes)


def _pieces(read: Read) -> Iterator[Read]:
    """A large read as several that can be under way together: few disks give all they can for one."""
    size = _up(-(-read.nbytes // -(-read.nbytes // PIECE)))
    for at in range(0, read.nbytes, size):
        nbytes = min(size, read.nbytes - at)
        yield Read(read.part, read.offset + at, nbytes, read.at + at, min(nbytes, read.needed - at))


def _up(n: int) -> int:
    return -(-n // PAGE) * PAGE


class Group(NamedTuple):
    """Layers whose experts have the same types and shapes, and so the same slots."""

    layers: tuple[int, ...]
    experts: int  # of all its layers
    slot_bytes: int


def extents(layout: ExpertLayout) -> dict[ExpertId, Extent]:
    """How every expert of a file is read."""
    return {
        ExpertId(layer, expert): extent([span for span in layout.spans(layer, expert) if span is not None])
        for layer in layout.layers
        for expert in range(layout.n_expert)
    }


def groups(layout: ExpertLayout, extents: Mapping[ExpertId, Extent]) -> list[Group]:
    """The groups of a file, in the order of their first layers."""
    alike: dict[object, list[int]] = {}
    for layer, stacks in layout.layers.items():
        key = tuple((stack.format.name, stack.rows, stack.cols) for stack in stacks if stack is not None)
        alike.setdefault(key, []).append(layer)
    widest = {
        layer: max(extents[ExpertId(layer, expert)].nbytes for expert in range(layout.n_expert))
        for layer in layout.layers
    }
    return [
        Group(tuple(layers), len(layers) * layout.n_expert, max(widest[layer] for layer in layers))
        for layers in alike.values()
    ]


def share(groups: Sequence[Group], budget: int) -> list[int]:
    """Slots of each group out of `budget` bytes: the same part of its experts everywhere, one at least.

    Where the budget is less than one slot a group, the sum exceeds it.
    """
    whole = sum(group.experts * group.slot_bytes for group in groups)
    counts = [max(1, min(g.experts, int(g.experts * min(1.0, budget / whole)))) for g in groups]
    left = budget - sum(count * group.slot_bytes for count, group in zip(counts, groups, strict=True))
    for n in sorted(range(len(groups)), key=lambda n: counts[n] / groups[n].experts):
        if counts[n] < groups[n].experts and groups[n].slot_bytes <= left:
            counts[n] += 1
            left -= groups[n].slot_bytes
    return counts


def least(groups: Sequence[Group]) -> int:
    """Bytes of one slot a group."""
    return sum(group.slot_bytes for group in groups)


class Arena:
    """`counts[n]` slots of each group, page-aligned; memory is taken when a slot is first written."""

    def __init__(self, groups: Sequence[Group], counts: Sequence[int]):
        sizes = [count * group.slot_bytes for count, group in zip(counts, groups, strict=True)]
        self.map = mmap.mmap(-1, sum(sizes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        try:
            self.map.madvise(mmap.MADV_HUGEPAGE)
        except (AttributeError, OSError):
            pass  # a system without huge pages
        self.bytes: NDArray[np.uint8] = np.frombuffer(self.map, dtype=np.uint8)
        self.base = int(self.bytes.ctypes.data)
        self._begin = np.concatenate([[0], np.cumsum(sizes)]).tolist()
        self._slot_bytes = [group.slot_bytes for group in groups]

    def slot(self, group: int, slot: int) -> NDArray[np.uint8]:
        """The bytes of a slot, writable."""
        begin = self._begin[group] + slot * self._slot_bytes[group]
        return self.bytes[begin : begin + self._slot_bytes[group]]

    def release(self, group: int, first: int, end: int) -> None:
        """Give the memory of the slots `first` to `end` - 1 back; writing to them takes it again."""
        begin = self._begin[group] + first * self._slot_bytes[group]
        self.map.madvise(mmap.MADV_DONTNEED, begin, (end - first) * self._slot_bytes[group])

    def address(self, group: int, slot: int) -> int:
        """Where a slot begins."""
        return int(self.base + self._begin[group] + slot * self._slot_bytes[group])
