"""The compiled CPU kernels behind checks: shapes are refused here in a sentence, addresses go in."""

import gc
import weakref
from functools import cache
from typing import Any, Protocol

import numpy as np
import torch
from gmoe.kernels.activations import kind_of
from gmoe.kernels.cpu import _cpu
from gmoe.kernels.formats import QuantFormat, QuantTensor
from gmoe.kernels.grids import grid, sign_bytes
from torch import Tensor

_NAMES = ("gate", "up", "down")


class Matrix(Protocol):
    """What is read of an `ops.ExpertMatrix`."""

    @property
    def format(self) -> QuantFormat: ...
    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...
    @property
    def address(self) -> np.ndarray: ...
    @property
    def bias(self) -> np.ndarray | None: ...
    @property
    def scale(self) -> np.ndarray | None: ...


class Table(Protocol):
    """What is read of an `ops.ExpertTable`."""

    @property
    def gate(self) -> Matrix | None: ...
    @property
    def up(self) -> Matrix: ...
    @property
    def down(self) -> Matrix: ...


@cache
def _formats() -> frozenset[str]:
    return frozenset(_cpu.formats())


def supported(format_name: str) -> bool:
    """Whether the kernels multiply with this format, by its GGMLQuantizationType name."""
    return format_name in _formats()


@cache
def levels() -> list[str]:
    """What this machine can run, slowest first: "portable", "avx2", "avx512", "amx"; "portable", "neon" on ARM."""
    return list(_cpu.levels())


def usable_cores() -> int:
    """The least of what the affinity mask and the cgroups' CPU quotas allow, at least 1."""
    return int(_cpu.usable_cores())


def matmul(x: Tensor, w: QuantTensor, *, threads: int = 0, level: str | None = None) -> Tensor:
    """`x @ w.T`: x [T, in] float32 -> [T, out] float32, x rounded to 8-bit blocks as llama.cpp does.

    A row's bits do not depend on the other rows, on `threads` (0: the usable cores) or on `level` (None: the best).
    """
    address = weight_address(w, None)
    rows, cols = w.shape
    check_floats("x", x, (None, cols))
    row_bytes = w.format.row_bytes(cols)
    x = x.contiguous()
    out = torch.empty(len(x), rows)
    _cpu.matmul(
        _level(level), w.format.name, address, row_bytes, rows, cols, x.data_ptr(), len(x), out.data_ptr(), threads
    )
    return out


def weight_address(w: QuantTensor, cols: int | None) -> int:
    """Where a matrix [rows, cols] (None: any) of the kernels' formats lies; anything else is refused."""
    _check_format(w.format)
    if len(w.shape) != 2 or cols not in (None, w.shape[1]):
        raise ValueError(
            f"weights of shape {tuple(w.shape)} are no matrix of {'any' if cols is None else cols} columns"
        )
    rows, row_bytes = w.shape[0], w.format.row_bytes(w.shape[1])
    if tuple(w.data.shape) != (rows, row_bytes):
        raise ValueError(f"{w.format.name} of shape {tuple(w.shape)} is {(rows, row_bytes)} bytes, not {w.data.shape}")
    return _address(w.data)


@cache
def has_values(format_name: str) -> bool:
    """Whether `rows` knows this format."""
    return bool(_cpu.has_values(format_name))


class Rows:
    """A matrix [V, D] whose format `has_values`, checked once, of which rows are wanted as floats."""

    def __init__(self, w: QuantTensor):
        address = weight_address(w, None)
        if not has_values(w.format.name):
            raise ValueError(f"the CPU kernels do not unpack {w.format.name}")
        self._high, self._cols = w.shape
        self._matrix = w.format.name, address, w.format.row_bytes(self._cols), self._high, self._cols
        self._held = w.data

    def __call__(self, ids: Tensor, *, threads: int = 0) -> Tensor:
        """Rows ids [T] int64: [T, D] float32, bit for bit `dequantize`'s; `ValueError` for no row, on a tape too."""
        if ids.dtype is not torch.int64 or not ids.is_contiguous():
            raise ValueError(f"ids must be contiguous int64 of {self._high} rows")
        count = ids.numel()
        out = torch.empty(count, self._cols)
        _cpu.rows_of(*self._matrix, ids.data_ptr(), count, out.data_ptr(), threads)
        return out


class Experts:
    """A table of experts, checked once, as the kernels take it; its addresses may change in place."""

    def __init__(self, table: Table):
        gate, up, down = table.gate, table.up, table.down
        for name, matrix, shape in (("up", up, (up.rows, up.cols)), ("down", down, (down.rows, up.rows))):
            _check_matrix(name, matrix, shape)
        if gate is not None:
            _check_matrix("gate", gate, (up.rows, up.cols))
        self.width, self.rows = up.cols, down.rows
        self.gated = gate is not None
        self._calls: dict[tuple[str | None, str], tuple[Any, ...]] = {}
        self.matrices = {name: _Held(m) for name, m in (("gate", gate), ("up", up), ("down", down)) if m is not None}

    def call(self, level: str | None, activation: str) -> tuple[Any, ...]:
        """What a call begins with: the level, gate, up and down, the activation and its bounds."""
        key = level, activation
        if key not in self._calls:
            kind, most, most_up = kind_of(activation)
            if (kind == "relu2") == self.gated:
                raise ValueError(f"activation {activation!r} {'takes no' if self.gated else 'needs a'} gate")
            held = [self.matrices[name].native if name in self.matrices else None for name in _NAMES]
            self._calls[key] = (_level(level), *held, kind, most, most_up)
        return self._calls[key]

    def check(self, ids: Tensor) -> None:
        """Refuse ids of experts that are not there."""
        first, count = ids.data_ptr(), ids.numel()
        for name, matrix in self.matrices.items():
            n = matrix.count
            place = _cpu.absent(matrix.place, n, first, count)
            if place >= 0:
                expert = int(ids.view(-1)[place])
                if expert >= n:
                    raise ValueError(f"expert {expert} is chosen, {name} has {n}")
                raise ValueError(f"{name} of expert {expert} is chosen but absent")


def expert_rows(
    x: Tensor,
    topk_ids: Tensor,
    table: Table | Experts,
    activation: str,
    out: Tensor,
    *,
    threads: int = 0,
    level: str | None = None,
) -> None:
    """Fill out[t, j] with expert topk_ids[t, j] of x[t]; x [T, D], out [T, k, D]; an id of -1 leaves its row alone."""
    experts = table if isinstance(table, Experts) else Experts(table)
    tokens, k = topk_ids.shape
    called = experts.call(level, activation)
    x, ids = _checked(experts, x, topk_ids)
    check_floats("out", out, (tokens, k, experts.rows))
    if not out.is_contiguous():
        raise ValueError(f"out of shape {tuple(out.shape)} must be contiguous")
    _cpu.expert_rows(*called, x.data_ptr(), ids.data_ptr(), tokens, k, out.data_ptr(), threads)


def expert_mlp(
    x: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor,
    table: Table | Experts,
    activation: str,
    *,
    threads: int = 0,
    level: str | None = None,
) -> Tensor:
    """The weighted sum [T, D] of what `expert_rows` gives: bit for bit its `combine`, without its rows in memory."""
    experts = table if isinstance(table, Experts) else Experts(table)
    tokens, k = topk_ids.shape
    called = experts.call(level, activation)
    x, ids = _checked(experts, x, topk_ids)
    check_floats("topk_weights", topk_weights, (tokens, k))
    weights = topk_weights.contiguous()
    y = torch.empty(tokens, experts.rows)
    addresses = x.data_ptr(), ids.data_ptr(), weights.data_ptr()
    _cpu.expert_mlp(*called, *addresses, tokens, k, y.data_ptr(), threads)
    return y


def _checked(experts: Experts, x: Tensor, topk_ids: Tensor) -> tuple[Tensor, Tensor]:
    """x and the ids as the kernels take them, or what is wrong with them."""
    check_floats("x", x, (topk_ids.shape[0], experts.width))
    ids = topk_ids if topk_ids.dtype is torch.int32 else topk_ids.to(torch.int32)
    ids = ids.contiguous()
    experts.check(ids)
    return x.contiguous(), ids


def combine(
    out: Tensor, topk_weights: Tensor, topk_ids: Tensor, *, threads: int = 0, level: str | None = None
) -> Tensor:
    """Sum out [T, k, D] in the order of the ids, weighted; an id of -1 counts nothing. Returns [T, D]."""
    tokens, k, width = out.shape
    check_floats("out", out, (tokens, k, width))
    check_floats("topk_weights", topk_weights, (tokens, k))
    if tuple(topk_ids.shape) != (tokens, k):
        raise ValueError(f"topk_ids of shape {tuple(topk_ids.shape)} must be {(tokens, k)}")
    out, weights, ids = out.contiguous(), topk_weights.contiguous(), topk_ids.to(torch.int32).contiguous()
    y = torch.empty(tokens, width)
    addresses = out.data_ptr(), weights.data_ptr(), ids.data_ptr()
    _cpu.combine(_level(level), *addresses, tokens, k, width, y.data_ptr(), threads)
    return y


def read(data: np.ndarray, *, threads: int = 0) -> int:
    """Read contiguous bytes once on all threads and do no more: what a kernel bound by memory is measured against."""
    return int(_cpu.read(_address(data), data.nbytes, threads))


class Guard:
    """Watches a read-only map of a file that is in use: bytes that the file has no more read as zeros, and it says so.

    Without it the system ends a process that touches them. `data` is uint8 and begins where the map does.
    """

    def __init__(self, data: np.ndarray):
        self._number = int(_cpu.guard(data.ctypes.data, data.nbytes)) if data.nbytes else -1
        self._end = weakref.finalize(self, _cpu.unguard, self._number)

    @property
    def lost(self) -> bool:
        """Whether zeros were read; what was computed since the map was whole is worth nothing."""
        return bool(_cpu.lost(self._number))

    def close(self) -> None:
        """Watch no longer; called before the map goes."""
        self._end()
        self._number = -1


class _Held:
    """A matrix as the kernels see it, and what keeps its arrays alive."""

    def __init__(self, matrix: Matrix):
        self.address = matrix.address
        if self.address.dtype != np.int64 or not self.address.flags.c_contiguous:
            raise ValueError(f"addresses must be contiguous int64, not {self.address.dtype}")
        self.count, self.place = len(self.address), self.address.ctypes.data
        self.bias = None if matrix.bias is None else np.ascontiguousarray(matrix.bias, dtype=np.float32)
        self.scale = None if matrix.scale is None else np.ascontiguousarray(matrix.scale, dtype=np.float32)
        row_bytes = matrix.format.row_bytes(matrix.cols)
        vectors = [0 if vector is None else vector.ctypes.data for vector in (self.bias, self.scale)]
        self.native = _cpu.Matrix(matrix.format.name, matrix.rows, matrix.cols, row_bytes, self.place, *vectors)


def _level(name: str | None) -> str:
    if name is None:
        return levels()[-1]
    if name not in levels():
        raise ValueError(f"this CPU has no kernel level {name!r}; it has {', '.join(levels())}")
    return name


def _address(data: Tensor | np.ndarray) -> int:
    if isinstance(data, Tensor):
        if data.device.type != "cpu" or not data.is_contiguous():
            raise ValueError("weights for the CPU kernels must be contiguous and on the CPU")
        return data.data_ptr()
    if not data.flags.c_contiguous:
        raise ValueError("weights for the CPU kernels must be contiguous")
    return int(data.ctypes.data)


def _check_format(format: QuantFormat) -> None:
    if not supported(format.name):
        raise ValueError(f"the CPU kernels have no {format.name}; they have {', '.join(sorted(_formats()))}")


def check_floats(name: str, x: Tensor, shape: tuple[int | None, ...]) -> None:
    """Refuse what is not float32 of this shape (None: any size) on the CPU."""
    if x.shape == shape and x.dtype is torch.float32 and x.is_cpu:
        return
    fits = x.dim() == len(shape) and all(want in (None, have) for want, have in zip(shape, x.shape, strict=False))
    if not fits or x.dtype != torch.float32 or x.device.type != "cpu":
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise ValueError(
            f"{name} must be float32 [{wanted}] on the CPU, not {x.dtype} {list(x.shape)} on {x.device.type}"
        )


def _check_matrix(name: str, matrix: Matrix, shape: tuple[int, int]) -> None:
    _check_format(matrix.format)
    if (matrix.rows, matrix.cols) != shape:
        raise ValueError(f"{name} is [{matrix.rows}, {matrix.cols}] where [{shape[0]}, {shape[1]}] is needed")
    if matrix.bias is not None and matrix.bias.shape != (len(matrix.address), matrix.rows):
        raise ValueError(
            f"{name}'s bias is {list(matrix.bias.shape)} where [{len(matrix.address)}, {matrix.rows}] is needed"
        )
    if matrix.scale is not None and matrix.scale.shape != (len(matrix.address),):
        raise ValueError(f"{name}'s scale is {list(matrix.scale.shape)} where [{len(matrix.address)}] is needed")


def _hand_over_grids() -> None:
    for name in ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"):
        _cpu.set_table(name, grid(name).astype(np.uint8).tobytes())
    _cpu.set_table("IQ1_S", (grid("IQ1_S") + 1).astype(np.uint8).tobytes())
    _cpu.set_table("signs", sign_bytes().tobytes())


_hand_over_grids()
gc.freeze()  # torch stays: a full collection would go through all of it while the rest is imported
