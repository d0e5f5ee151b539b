"""The only door into the room: dequantize, matmul and expert_mlp, on whatever kernel serves the device best."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from gmoe.kernels import cpu_ops
from gmoe.kernels.formats import QuantFormat, QuantTensor
from gmoe.kernels.reference import dequantize
from gmoe.kernels.rounding import round_activations
from torch import Tensor

__all__ = ["Activations", "ExpertMatrix", "ExpertTable", "combine", "dequantize", "expert_mlp", "expert_rows", "matmul"]

Activations = Literal["q8", "float"]


@dataclass(frozen=True)
class ExpertMatrix:
    """One of gate, up and down for a table of experts, where they lie in host memory."""

    format: QuantFormat
    rows: int
    cols: int
    address: np.ndarray  # int64 [n], 0: absent
    bias: np.ndarray | None  # float32 [n, rows]
    owner: Any  # keeps the bytes alive
    data: Callable[[int], np.ndarray]  # expert -> uint8 [rows, row_bytes]

    def tensor(self, expert: int) -> QuantTensor:
        """The matrix of one expert, without a copy."""
        return QuantTensor(self.data(expert), self.format, (self.rows, self.cols))


@dataclass(frozen=True)
class ExpertTable:
    """The experts of one layer; row n of each matrix is expert n."""

    gate: ExpertMatrix | None
    up: ExpertMatrix
    down: ExpertMatrix

    @cached_property
    def compiled(self) -> "cpu_ops.Experts | None":
        """The table as the CPU kernels take it, None where they have not all of its formats."""
        matrices = [m for m in (self.gate, self.up, self.down) if m is not None]
        return cpu_ops.Experts(self) if all(cpu_ops.supported(m.format.name) for m in matrices) else None


def matmul(x: Tensor, w: QuantTensor, *, activations: Activations = "q8") -> Tensor:
    """`x @ w.T`: x [T, in] float32 -> [T, out] float32.

    "q8" rounds x to 8-bit blocks as llama.cpp does, "float" multiplies with the exactly dequantized weights.
    """
    if activations == "q8":
        if x.device.type == "cpu" and cpu_ops.supported(w.format.name):
            return cpu_ops.matmul(x, w, threads=torch.get_num_threads())
        x = round_activations(x, w.format)
    return x @ dequantize(w).T


def expert_rows(
    x: Tensor, topk_ids: Tensor, table: ExpertTable, activation: str, activations: Activations, out: Tensor
) -> None:
    """Fill out[t, j] with expert topk_ids[t, j] of x[t]; x [T, D], out [T, k, D]; an id of -1 leaves its row alone."""
    if activations == "q8" and x.device.type == "cpu" and table.compiled is not None:
        cpu_ops.expert_rows(x, topk_ids, table.compiled, activation, out, threads=torch.get_num_threads())
        return
    for expert in torch.unique(topk_ids).tolist():
        if expert >= 0:
            token, slot = torch.nonzero(topk_ids == expert, as_tuple=True)
            out[token, slot] = _expert(x[token], expert, table, activation, activations)


def combine(out: Tensor, topk_weights: Tensor, topk_ids: Tensor) -> Tensor:
    """Sum out [T, k, D] over k in order, weighted; an id of -1 counts nothing. Returns [T, D]."""
    if out.device.type == "cpu":
        return cpu_ops.combine(out, topk_weights, topk_ids, threads=torch.get_num_threads())
    y = torch.zeros_like(out[:, 0])
    for j in range(out.shape[1]):
        here = (topk_ids[:, j] >= 0)[:, None]
        y = y + torch.where(here, topk_weights[:, j, None] * out[:, j], 0.0)
    return y


def expert_mlp(
    x: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor,
    table: ExpertTable,
    activation: str = "swiglu",
    activations: Activations = "q8",
) -> Tensor:
    """The routed experts' sum for x [T, D] -> [T, D]; bit for bit `combine(expert_rows(...))`."""
    out = x.new_empty(x.shape[0], topk_ids.shape[1], table.down.rows)
    expert_rows(x, topk_ids, table, activation, activations, out)
    return combine(out, topk_weights, topk_ids)


def activate(name: str, gate: Tensor | None, up: Tensor) -> Tensor:
    """The activation between up and down; names as in llama.cpp's `build_moe_ffn`."""
    if name == "relu2":
        return F.relu(up).square()
    if gate is None:
        raise ValueError(f"activation {name!r} needs a gate")
    if name == "swiglu":
        return F.silu(gate) * up
    if name == "geglu":
        return F.gelu(gate, approximate="tanh") * up
    if name == "reglu":
        return F.relu(gate) * up
    if name == "swiglu_oai":
        gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
        return gate * torch.sigmoid(1.702 * gate) * (up + 1.0)
    raise ValueError(f"unknown activation {name!r}; known: swiglu, geglu, reglu, relu2, swiglu_oai")


def _expert(x: Tensor, expert: int, table: ExpertTable, activation: str, activations: Activations) -> Tensor:
    gate = None if table.gate is None else _biased(x, table.gate, expert, activations)
    up = _biased(x, table.up, expert, activations)
    return _biased(activate(activation, gate, up), table.down, expert, activations)


def _biased(x: Tensor, matrix: ExpertMatrix, expert: int, activations: Activations) -> Tensor:
    y = matmul(x, matrix.tensor(expert), activations=activations)
    return y if matrix.bias is None else y + torch.from_numpy(matrix.bias[expert])
