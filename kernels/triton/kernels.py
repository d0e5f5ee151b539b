"""Triton's side of `device_kernels.DeviceKernels`: float32 in and out."""

from gmoe.kernels.bank import ExpertBank
from gmoe.kernels.formats import QuantTensor
from gmoe.kernels.triton import experts
from gmoe.kernels.triton import matmul as products
from torch import Tensor

combine = experts.combine
expert_rows = experts.expert_rows


def dequantize(w: QuantTensor) -> Tensor:
    """The values of `w`, float32 of its shape."""
    return products.dequantize(w)


def matmul(x: Tensor, w: QuantTensor, exact: bool) -> Tensor:
    """x [T, in] @ w.T -> [T, out]; not `exact`: tiles of several rows are multiplied as TF32."""
    return products.matmul(x, w, exact=exact)


__all__ = ["ExpertBank", "combine", "dequantize", "expert_rows", "matmul"]
