"""Which kernels multiply with weights on a device that is not the CPU: Triton's, unless its type was given others."""

from importlib import import_module
from typing import Protocol

import torch
from gmoe.kernels.bank import ExpertBank
from gmoe.kernels.formats import QuantTensor
from torch import Tensor


class DeviceKernels(Protocol):
    """All tensors are on the device; none of these waits for it."""

    def dequantize(self, w: QuantTensor) -> Tensor:
        """The values of `w`, float32 of its shape [rows, cols]."""

    def matmul(self, x: Tensor, w: QuantTensor, exact: bool) -> Tensor:
        """x [T, in] float32 @ w.T -> [T, out] float32; not `exact`: x may be rounded, but keeps its range."""

    def expert_rows(
        self, x: Tensor, slots: Tensor, ids: Tensor, bank: ExpertBank, activation: str, out: Tensor, exact: bool
    ) -> None:
        """Fill out[t, j] with the expert in slots[t, j] of x[t]; x [T, D], out [T, k, D], slots, ids [T, k] int32.

        A slot of -1 leaves its row alone; ids choose the biases. A row's bits do not depend on the other slots.
        """

    def combine(self, out: Tensor, weights: Tensor, places: Tensor) -> Tensor:
        """Sum out [T, k, D] over k in order, weighted [T, k]; a place [T, k] int32 below 0 counts nothing."""


_given: dict[str, DeviceKernels] = {}


def give(device_type: str, kernels: DeviceKernels) -> None:
    """From now on these serve all devices of a type."""
    _given[device_type] = kernels


def kernels_of(device: torch.device) -> DeviceKernels:
    """Those that serve a device; ImportError where they are Triton's and it is not installed."""
    if device.type not in _given:
        give(device.type, import_module("gmoe.kernels.triton.kernels"))  # type: ignore[arg-type]
    return _given[device.type]
