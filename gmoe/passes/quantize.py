"""quantize: a model rewritten in another mix of types, a tensor at a time, by our own encoders."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gmoe.gguf.file import GGUFFile, InvalidFile, TensorInfo, UnsupportedModel
from gmoe.gguf.rewrite import Edit, rewrite
from gmoe.kernels.formats import FORMATS, QuantTensor
from gmoe.kernels.ops import dequantize
from gmoe.kernels.quantize import quantize as encode
from gmoe.passes.mixes import Override, Plan, file_type, mix_named

Progress = Callable[[TensorInfo, str], None]  # a tensor is about to be written in this type
Importance = Mapping[str, np.ndarray]  # tensor name -> [matrices, columns]
FLOATS = ("F32", "F16", "BF16", "F64")
_CHUNK = 1 << 22  # elements decoded at a time


def quantize(
    src: Path,
    dst: Path,
    type_name: str,
    *,
    overrides: Iterable[Override] = (),
    importance: Importance | None = None,
    requantize: bool = False,
    progress: Progress = lambda info, kind: None,
) -> None:
    """Write `dst` from `src` in the mix `type_name`; it stands under its name only when whole. Raises ValueError.

    A tensor that is quantized already is refused unless `requantize`: its error would be added to the new one.
    """
    mix = mix_named(type_name)
    with GGUFFile.open(src) as file:
        plan = Plan(file, mix, overrides, importance is not None)
        changes = {"general.file_type": np.uint32(file_type(mix)), "general.quantization_version": np.uint32(2)}
        rewrite(file, dst, edit_of(plan.types, str(src), importance or {}, requantize, progress), changes)


def edit_of(
    types: Mapping[str, str], source: str, importance: Importance, requantize: bool, progress: Progress
) -> Edit:
    """The edit that gives every tensor its type of `types`."""

    def edit(info: TensorInfo, tensor: QuantTensor) -> Iterable[tuple[str, QuantTensor]]:
        kind = types[info.name]
        progress(info, kind)
        if kind == info.format.name:
            return [(info.name, tensor)]
        if info.format.name not in FLOATS and not requantize:
            raise UnsupportedModel(
                source,
                info.name,
                f"is {info.format.name} already; take an F16, BF16 or F32 file, or gmoe quantize --allow-requantize",
            )
        return [(info.name, recode(tensor, kind, importance.get(info.name), f"{source}: {info.name}"))]

    return edit


def recode(tensor: QuantTensor, kind: str, importance: np.ndarray | None, where: str) -> QuantTensor:
    """A tensor in another type, matrix by matrix; `importance` [matrices, columns] or [1, columns]."""
    row, shape = FORMATS[kind], tensor.shape
    data = np.asarray(tensor.data).reshape(-1, *np.asarray(tensor.data).shape[-2:])  # [matrices, rows, bytes]
    if importance is not None and importance.shape not in ((len(data), shape[-1]), (1, shape[-1])):
        told = f"{list(importance.shape)} numbers, the tensor needs {[len(data), shape[-1]]}: it is another model's"
        raise ValueError(f"{where}: the importance matrix has {told}")
    out = np.empty((*data.shape[:2], row.row_bytes(shape[-1])), np.uint8)
    step = max(1, _CHUNK // shape[-1])
    for n, matrix in enumerate(data):
        weight = None if importance is None else importance[n if len(importance) > 1 else 0]
        for at in range(0, len(matrix), step):
            part = matrix[at : at + step]
            values = dequantize(QuantTensor(part, tensor.format, (len(part), shape[-1]))).numpy()
            try:
                out[n, at : at + step] = encode(values, row, weight).data
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
    return QuantTensor(out.reshape(*shape[:-1], -1), row, shape)


def read_importance(path: Path) -> dict[str, np.ndarray]:
    """llama-imatrix's GGUF file: the mean square of each column's activations, by tensor. Raises ValueError."""
    with GGUFFile.open(path) as file:
        found: dict[str, Any] = {}
        for name in file.tensors:
            if not name.endswith(".in_sum2"):
                continue
            stem = name.removesuffix(".in_sum2")
            if f"{stem}.counts" not in file.tensors:
                raise InvalidFile(str(path), f"{stem}.counts is missing beside {name}")
            sums, counts = (dequantize(file.view(n)).numpy() for n in (name, f"{stem}.counts"))
            sums = sums.reshape(-1, sums.shape[-1])
            if counts.size != len(sums):
                raise InvalidFile(str(path), f"{stem}.counts has {counts.size} numbers for {len(sums)} matrices")
            if not all(np.isfinite(values).all() and values.min() >= 0 for values in (sums, counts)):
                raise InvalidFile(str(path), f"{name} and its counts must be finite and not negative")
            means = sums / np.maximum(counts.reshape(-1, 1), 1)
            unseen = counts.reshape(-1) == 0  # an expert that was never chosen: what the others saw
            if unseen.any():
                means[unseen] = sums.sum(0) / max(float(counts.sum()), 1.0)
            found[stem] = means
    if not found:
        raise UnsupportedModel(str(path), "*.in_sum2", "no tensor of this name: it is not an importance matrix")
    return found
