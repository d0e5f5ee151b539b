"""ExpertLayout: where the bytes of each expert lie, whatever way the file stacks, splits or fuses them."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gmoe.gguf.file import GGUFFile, UnsupportedModel
from gmoe.kernels.formats import QuantFormat, QuantTensor


class Span(NamedTuple):
    """One matrix of one expert in the file."""

    part: int
    offset: int  # bytes from the beginning of that part
    nbytes: int
    format: QuantFormat


@dataclass(frozen=True)
class ExpertStack:
    """One of gate, up and down for all experts of a layer."""

    format: QuantFormat
    rows: int
    cols: int
    spans: tuple[Span, ...]
    matrices: tuple[np.ndarray, ...]  # each uint8 [rows, row_bytes], a view of the map
    bias: QuantTensor | None  # [experts, rows]
    scale: QuantTensor | None = None  # [experts]: what their products are multiplied with before the biases


class ExpertSpans(NamedTuple):
    """The matrices of one expert; `gate` is None where the activation has no gate."""

    gate: Span | None
    up: Span
    down: Span

    @property
    def nbytes(self) -> int:
        """Bytes of the whole expert."""
        return sum(span.nbytes for span in self if span is not None)


class LayerExperts(NamedTuple):
    """The experts of one layer."""

    gate: ExpertStack | None
    up: ExpertStack
    down: ExpertStack


class ExpertLayout:
    """Finds every expert of a file; `layers` maps a block number to its `LayerExperts`."""

    def __init__(self, file: GGUFFile, n_block: int, n_expert: int):
        self._file = file
        self.n_expert = n_expert
        self.names: set[str] = set()
        self.layers: dict[int, LayerExperts] = {}
        for layer in range(n_block):
            experts = self._layer(f"blk.{layer}.")
            if experts is not None:
                self.layers[layer] = experts

    def spans(self, layer: int, expert: int) -> ExpertSpans:
        """Where gate, up and down of one expert lie."""
        gate, up, down = self.layers[layer]
        return ExpertSpans(None if gate is None else gate.spans[expert], up.spans[expert], down.spans[expert])

    def expert_bytes(self, layer: int) -> int:
        """Bytes of one expert of a layer."""
        return self.spans(layer, 0).nbytes

    def _layer(self, prefix: str) -> LayerExperts | None:
        if not self.n_expert:
            return None
        fused = self._stack(prefix, "gate_up")
        if fused is not None:
            half = fused.rows // 2
            if fused.rows % 2:
                raise UnsupportedModel(self._name, prefix + "ffn_gate_up_exps.weight", "its rows are not gate and up")
            gate: ExpertStack | None = _rows(fused, 0, half)
            up = _rows(fused, half, fused.rows)
        else:
            found = self._stack(prefix, "up")
            if found is None:
                return None
            gate, up = self._stack(prefix, "gate"), found
        down = self._stack(prefix, "down")
        if down is None:
            raise UnsupportedModel(self._name, prefix + "ffn_down_exps.weight", "missing beside ffn_up_exps")
        for name, fits in (
            ("gate", gate is None or (gate.rows, gate.cols) == (up.rows, up.cols)),
            ("down", (down.rows, down.cols) == (up.cols, up.rows)),
        ):
            if not fits:
                key = f"{prefix}ffn_{name}_exps.weight"
                raise UnsupportedModel(self._name, key, "its shape does not fit that of ffn_up_exps")
        return LayerExperts(gate, up, down)

    @property
    def _name(self) -> str:
        return str(self._file.path)

    def _stack(self, prefix: str, role: str) -> ExpertStack | None:
        stacked = f"{prefix}ffn_{role}_exps"
        if stacked + ".weight" in self._file.tensors:
            info, tensor = self._file.tensors[stacked + ".weight"], self._file.view(stacked + ".weight")
            if len(tensor.shape) != 3 or tensor.shape[0] != self.n_expert:
                raise UnsupportedModel(self._name, info.name, f"must hold {self.n_expert} experts, has {tensor.shape}")
            size = info.nbytes // self.n_expert
            matrices = tuple(np.asarray(tensor.data))
            spans = tuple(Span(info.part, info.offset + e * size, size, info.format) for e in range(self.n_expert))
            self.names.add(info.name)
            shape, format = tensor.shape[1:], info.format
        else:
            names = [f"{prefix}ffn_{role}.{e}.weight" for e in range(self.n_expert)]
            if names[0] not in self._file.tensors:
                return None
            missing = next((name for name in names if name not in self._file.tensors), None)
            if missing is not None:
                raise UnsupportedModel(self._name, missing, "missing beside the other experts")
            infos = [self._file.tensors[name] for name in names]
            if len({(info.shape, info.format.name) for info in infos}) != 1:
                raise UnsupportedModel(self._name, names[0], "the experts of a layer must share shape and type")
            matrices = tuple(np.asarray(self._file.view(name).data) for name in names)
            spans = tuple(Span(info.part, info.offset, info.nbytes, info.format) for info in infos)
            self.names.update(names)
            shape, format = infos[0].shape, infos[0].format
        self._beside(stacked + ".input_scale", (self.n_expert,))  # of kernels that round activations to NVFP4
        bias = self._beside(stacked + ".bias", (self.n_expert, shape[0]))
        scale = self._beside(stacked + ".scale", (self.n_expert,)) if role in ("gate", "up") else None
        return ExpertStack(format, shape[0], shape[1], spans, matrices, bias, scale)

    def _beside(self, name: str, want: tuple[int, ...]) -> QuantTensor | None:
        """A tensor of this shape beside the experts' matrices, or None."""
        if name not in self._file.tensors:
            return None
        tensor = self._file.view(name)
        if tensor.shape != want:
            told = f"has the shape {list(tensor.shape)}, not {list(want)} as its experts"
            raise UnsupportedModel(self._name, name, told)
        self.names.add(name)
        return tensor


def _rows(stack: ExpertStack, begin: int, end: int) -> ExpertStack:
    """The same experts, only these rows of each."""
    row_bytes = stack.format.row_bytes(stack.cols)
    spans = tuple(
        s._replace(offset=s.offset + begin * row_bytes, nbytes=(end - begin) * row_bytes) for s in stack.spans
    )
    bias = stack.bias
    if bias is not None:
        data = np.asarray(bias.data).reshape(bias.shape[0], bias.shape[1], -1)[:, begin:end]
        bias = QuantTensor(data.reshape(bias.shape[0], -1), bias.format, (bias.shape[0], end - begin))
    matrices = tuple(m[begin:end] for m in stack.matrices)
    return ExpertStack(stack.format, end - begin, stack.cols, spans, matrices, bias)
