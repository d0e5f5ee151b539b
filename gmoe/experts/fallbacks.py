"""What lossy policies need besides the model: buddies and frequencies out of a trace, the layers' mean experts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gmoe.experts import calibration
from gmoe.experts.dispatch import ExpertDispatch
from gmoe.experts.expert_id import ExpertId
from gmoe.experts.policy import load, needs
from gmoe.experts.trace import Trace
from gmoe.experts.twin import open_twin
from gmoe.gguf.file import GGUFFile
from gmoe.gguf.layout import ExpertLayout, ExpertStack
from gmoe.kernels.formats import FORMATS, QuantTensor
from gmoe.kernels.ops import ExpertMatrix, ExpertTable
from gmoe.kernels.quantize import quantize
from gmoe.kernels.reference import as_tensor, dequantize

MERGED_FORMAT = "Q8_0"
ENOUGH, MOST = 0.9, 16  # buddies of an expert: those that make up so much of its company, and no more than that


def furnish(
    dispatch: ExpertDispatch,
    chosen: Mapping[str, str],
    knobs: Mapping[str, Mapping[str, Any]],
    model: GGUFFile,
    trace: Trace | None,
    twin: Path | None,
    at_hand: Mapping[str, Any],
) -> float | None:
    """Give `dispatch` the `chosen` route and miss policies; returns the twins' part of the memory as they want it.

    0: by measured cost; None: they use no twin.

    Raises ValueError where a policy wants a trace, a calibration or a twin, and there is none of this model.
    """
    layout = dispatch.store.layout
    given: dict[str, Any] = dict(at_hand)
    for need in (need for kind, name in chosen.items() for need in needs(kind, name)):
        if need == "sensitivity":
            given[need] = calibration.load(model).sensitivity
            if len(given[need]) <= max(layout.layers, default=-1):
                where = calibration.path_of(model)
                raise ValueError(
                    f"{where}: no sensitivities; `gmoe trace sensitivity {model.path} -f TEXT` measures them"
                )
        elif trace is None and need in ("buddies", "merged"):
            raise ValueError(
                f"miss={chosen['miss']!r} needs a routing trace of {model.path}: --trace FILE, see `gmoe trace record`"
            )
        elif trace is not None and need == "buddies":
            given[need] = buddies(trace)
        elif trace is not None and need == "merged":
            given[need] = dispatch.merged = merged(layout, frequencies(trace))
    dispatch.route = load("route", chosen["route"], knobs.get("route"), **given)
    dispatch.miss = load("miss", chosen["miss"], knobs.get("miss"), **given)
    share: float | None = getattr(dispatch.miss, "twin_share", None)
    if share is not None and twin is None:
        raise ValueError(
            f"miss={chosen['miss']!r} needs a low-precision twin of the model: --twin FILE, see `gmoe twin`"
        )
    if twin is not None:
        open_twin(twin, model, layout)
    return share


def buddies(trace: Trace) -> dict[ExpertId, list[int]]:
    """Of each expert those that are chosen together with it, most often first (BuddyMoE, 2511.10054)."""
    found: dict[ExpertId, list[int]] = {}
    n_expert = trace.header.n_expert
    for layer in range(trace.header.n_layer):
        ids = trace.ids[trace.rows["layer"] == layer].astype(np.int64)
        chosen = np.zeros((len(ids), n_expert), np.float32)
        np.put_along_axis(chosen, ids, 1.0, axis=1)
        together = chosen.T @ chosen
        np.fill_diagonal(together, 0)
        for expert in range(n_expert):
            order = np.argsort(-together[expert], kind="stable")
            part = np.cumsum(together[expert][order]) / max(float(together[expert].sum()), 1.0)
            count = min(MOST, int((part < ENOUGH).sum()) + 1)
            found[ExpertId(layer, expert)] = [int(e) for e in order[:count] if together[expert, e] > 0]
    return found


def frequencies(trace: Trace) -> NDArray[np.float64]:
    """How often each expert was chosen, [layers, experts], each layer's sum 1 where it routed anything."""
    count = np.zeros((trace.header.n_layer, trace.header.n_expert))
    layers = np.broadcast_to(trace.rows["layer"][:, None], trace.ids.shape)
    np.add.at(count, (layers, trace.ids), 1.0)
    return count / np.maximum(count.sum(-1, keepdims=True), 1.0)


def merged(layout: ExpertLayout, frequency: NDArray[np.float64]) -> Mapping[int, ExpertTable]:
    """The mean of each layer's experts by frequency, as tables of one expert (MEO, 2310.09832)."""
    tables = {}
    for layer, stacks in layout.layers.items():
        weight = frequency[layer] if frequency[layer].sum() > 0 else np.full(layout.n_expert, 1 / layout.n_expert)
        gate, up, down = (None if stack is None else _mean(stack, weight) for stack in stacks)
        assert up is not None and down is not None
        tables[layer] = ExpertTable(gate, up, down)
    return tables


def _mean(stack: ExpertStack, weight: NDArray[np.float64]) -> ExpertMatrix:
    total = np.zeros((stack.rows, stack.cols), np.float32)
    scaled = weight if stack.scale is None else weight * dequantize(stack.scale).numpy()
    for matrix, part in zip(stack.matrices, scaled, strict=True):
        if part:
            values = dequantize(QuantTensor(matrix, stack.format, (stack.rows, stack.cols))).numpy()
            total += np.float32(part) * values
    row = FORMATS[MERGED_FORMAT if stack.cols % FORMATS[MERGED_FORMAT].block_size == 0 else "F16"]
    data = quantize(total, row).data
    bias = None
    if stack.bias is not None:
        bias = (dequantize(stack.bias).numpy() * weight[:, None].astype(np.float32)).sum(0, keepdims=True)
    address = np.array([data.ctypes.data], dtype=np.int64)
    return ExpertMatrix(row, stack.rows, stack.cols, address, bias, data, [as_tensor(data).numpy()].__getitem__)
