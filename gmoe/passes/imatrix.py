"""imatrix: how strongly each column of every expert's matrices is driven by a text, in llama-imatrix's format."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gmoe.experts.expert import Routing
from gmoe.gguf.file import GGUFFile, TensorInfo
from gmoe.gguf.layout import ExpertLayout, ExpertStack
from gmoe.gguf.rewrite import rewrite
from gmoe.kernels.formats import FORMATS, QuantTensor
from gmoe.kernels.ops import activate, dequantize, matmul

EXPERTS = re.compile(r"blk\.(?P<layer>\d+)\.ffn_(?P<role>gate|up|down|gate_up)(_exps|\.(?P<expert>\d+))\.weight")
Dispatch = Callable[[int, Tensor, Routing, str], Tensor]


class Importance:
    """Sums of squares of what the experts' gate, up and down are given; `layers` [E, columns] of two of them."""

    def __init__(self, layout: ExpertLayout):
        self.layout = layout
        self.counts = {layer: np.zeros(layout.n_expert, np.float32) for layer in layout.layers}
        self.inner = {n: np.zeros((layout.n_expert, e.up.cols), np.float32) for n, e in layout.layers.items()}
        self.hidden = {n: np.zeros((layout.n_expert, e.down.cols), np.float32) for n, e in layout.layers.items()}

    def add(self, layer: int, x: Tensor, topk_ids: Tensor, activation: str) -> None:
        """x [T, D] is routed to topk_ids [T, k]."""
        gate, up, _ = self.layout.layers[layer]
        for expert in np.unique(topk_ids.numpy()).tolist():
            rows = x[(topk_ids == expert).any(-1)]
            hidden = activate(
                activation, None if gate is None else _product(rows, gate, expert), _product(rows, up, expert)
            )
            self.counts[layer][expert] += len(rows)
            self.inner[layer][expert] += rows.square().sum(0).numpy()
            self.hidden[layer][expert] += hidden.square().sum(0).numpy()

    def before(self, dispatch: Dispatch) -> Dispatch:
        """The same dispatch, listened to."""

        def listen(layer: int, x: Tensor, routing: Routing, activation: str = "swiglu", *beside: Any) -> Tensor:
            self.add(layer, x, routing.topk_ids, activation)
            return dispatch(layer, x, routing, activation, *beside)

        return listen

    @property
    def unseen(self) -> int:
        """Experts that no token chose."""
        return sum(int((counts == 0).sum()) for counts in self.counts.values())

    def save(self, file: GGUFFile, path: Path, source: str, chunks: int, chunk_size: int) -> None:
        """Write what was found of the model in `file`, whole or not at all; `source` names the text."""
        says = {"general.type": "imatrix", "imatrix.datasets": [source]}
        counts = {"imatrix.chunk_count": np.uint32(chunks), "imatrix.chunk_size": np.uint32(chunk_size)}
        rewrite(file, path, self._edit, {key: None for key in file.metadata} | says | counts)

    def _edit(self, info: TensorInfo, tensor: QuantTensor) -> Iterable[tuple[str, QuantTensor]]:
        found = EXPERTS.fullmatch(info.name)
        if found is None or (layer := int(found["layer"])) not in self.counts:
            return []
        which = slice(None) if found["expert"] is None else slice(int(found["expert"]), int(found["expert"]) + 1)
        sums = (self.hidden if found["role"] == "down" else self.inner)[layer][which]
        return [(f"{info.name}.in_sum2", _f32(sums)), (f"{info.name}.counts", _f32(self.counts[layer][which, None]))]


def _f32(values: np.ndarray) -> QuantTensor:
    return QuantTensor(np.ascontiguousarray(values).view(np.uint8), FORMATS["F32"], values.shape)


def _product(x: Tensor, stack: ExpertStack, expert: int) -> Tensor:
    y = matmul(x.contiguous(), QuantTensor(stack.matrices[expert], stack.format, (stack.rows, stack.cols)))
    y = y if stack.scale is None else y * float(dequantize(stack.scale)[expert])
    return y if stack.bias is None else y + torch.as_tensor(dequantize(stack.bias)[expert])
