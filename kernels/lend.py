"""Lender: the tensors of a pass in memory of its own, which others use as they die and which goes back at its end."""

import weakref
from bisect import insort
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

EMPTY = {"empty", "empty_like", "new_empty"}  # what makes a tensor without numbers
PIECE = 64 << 20  # bytes taken from the system at once; it hands out pages as they are written
LEAST = 1 << 20  # bytes of a tensor that is worth it
ROWS = 128  # and of a pass: listening to every call of torch takes its time
_LINE = 64  # every tensor begins at a line of the cache


class Memory:
    """Bytes for tensors: each gets the first that are free, and leaves them when it dies."""

    def __init__(self, piece: int):
        self._piece = piece
        self._pieces: list[np.ndarray] = []
        self._used: list[int] = []  # how far into each piece tensors have reached
        self._free: list[tuple[int, int, int]] = []  # (piece, begin, end), in order, with tensors between them
        self._left: list[tuple[int, int, int]] = []  # what tensors have left since

    @property
    def used(self) -> int:
        """Bytes that tensors have lain in so far."""
        return sum(self._used)

    def lend(self, like: Tensor) -> Tensor:
        """An empty tensor of this shape and type on the CPU."""
        place = self._take(max(1, -(-like.nbytes // _LINE)) * _LINE)
        lease = self._pieces[place[0]][place[1] : place[1] + like.nbytes]  # torch holds this view for all its tensors
        weakref.finalize(lease, self._left.append, place).atexit = False
        return torch.from_numpy(lease).view(like.dtype).view(like.shape)

    def _take(self, size: int) -> tuple[int, int, int]:
        while self._left:
            self._put_back(*self._left.pop())
        at = next((n for n, (_, begin, end) in enumerate(self._free) if end - begin >= size), len(self._free))
        if at == len(self._free):
            data = np.empty(max(self._piece, size) + _LINE, np.uint8)
            first = -data.ctypes.data % _LINE
            self._pieces.append(data[first : first + len(data) - _LINE])
            self._used.append(0)
            self._free.append((len(self._pieces) - 1, 0, len(data) - _LINE))
        piece, begin, end = self._free[at]
        self._free[at : at + 1] = [(piece, begin + size, end)] if end - begin > size else []
        self._used[piece] = max(self._used[piece], begin + size)
        return piece, begin, begin + size

    def _put_back(self, piece: int, begin: int, end: int) -> None:
        for beside in [n for n in self._free if n[0] == piece and (n[2] == begin or n[1] == end)]:
            self._free.remove(beside)
            begin, end = min(begin, beside[1]), max(end, beside[2])
        insort(self._free, (piece, begin, end))


class Lender(TorchFunctionMode):
    """While it is entered, this thread's large empty tensors on the CPU lie in its memory.

    The C library would hand out and take back the same pages again and again, or keep them in holes.
    """

    def __init__(self, least: int = LEAST) -> None:
        super().__init__()
        self.least = least
        self.memory = Memory(PIECE)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if func.__name__ in EMPTY and made.is_cpu and made.nbytes >= self.least:
            return self.memory.lend(made)
        return made


def lender(rows: int, device: torch.device) -> AbstractContextManager[Any]:
    """What to enter for a pass over so many rows: a `Lender` where there are many, on the CPU."""
    return Lender() if rows >= ROWS and device.type == "cpu" else nullcontext()
