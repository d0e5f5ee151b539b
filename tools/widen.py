"""Inflate a small qwen3moe GGUF to real expert sizes without changing what it says.

Added FFN neurons have random gate and up rows and exactly zero down columns, so they cost bytes and change nothing.
A wider embedding is padded with zeros; its norms are rescaled, since a mean square over more channels is smaller.
"""

import argparse
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from gmoe.kernels.formats import FORMATS, QuantTensor
from gmoe.kernels.ops import dequantize
from gmoe.kernels.quantize import quantize
from numpy.typing import NDArray

from gmoe.gguf.file import GGUFFile, TensorInfo
from gmoe.gguf.rewrite import rewrite
from gmoe.passes.mixes import Plan, file_type, mix_named

Floats = NDArray[np.float32]
WIDTH = "qwen3moe.embedding_length"
NEURONS = "qwen3moe.expert_feed_forward_length"
EPSILON = "qwen3moe.attention.layer_norm_rms_epsilon"


@dataclass(frozen=True)
class Size:
    """What grows: n_embd and n_ff_exp, before and after."""

    n_embd: int
    n_ff_exp: int
    wide_embd: int
    wide_ff_exp: int

    def wide(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The new row-major shape of a tensor."""
        part = name.removesuffix(".weight").split(".")[-1]
        if part in ("ffn_gate_exps", "ffn_up_exps"):
            return shape[0], self.wide_ff_exp, self.wide_embd
        if part == "ffn_down_exps":
            return shape[0], self.wide_embd, self.wide_ff_exp
        if part in ("attn_q_norm", "attn_k_norm"):
            return shape
        if part == "attn_output":
            return self.wide_embd, shape[1]
        return (*shape[:-1], self.wide_embd)


def read_size(file: GGUFFile, wide_embd: int | None, wide_ff_exp: int | None) -> Size:
    """Old sizes from the file, new ones as given. Raises ValueError where the file or the wish does not fit."""
    if file.architecture != "qwen3moe":
        raise ValueError("general.architecture: only qwen3moe can be widened")
    n_embd, n_ff_exp = int(file.metadata[WIDTH]), int(file.metadata[NEURONS])
    size = Size(n_embd, n_ff_exp, wide_embd or n_embd, wide_ff_exp or n_ff_exp)
    if size.wide_embd < n_embd or size.wide_ff_exp < n_ff_exp:
        raise ValueError(f"n_embd {n_embd} and n_ff_exp {n_ff_exp} can only grow")
    return size


def wide_norm(old: Floats, size: Size, n: int) -> Floats:
    """A norm's weights; those of one head stay."""
    wide = np.zeros(n, np.float32)
    wide[: len(old)] = old if n == len(old) else old * np.float32((size.n_embd / size.wide_embd) ** 0.5)
    return wide


def wide_matrix(old: Floats, shape: tuple[int, ...], rng: np.random.Generator | None) -> Floats:
    """A matrix filled up to `shape`: columns with zeros, rows with noise of its own size, or zeros without `rng`."""
    rows, columns = old.shape
    wide = np.zeros(shape, np.float32)
    wide[:rows, :columns] = old
    if rng is not None:
        wide[rows:] = rng.standard_normal((shape[0] - rows, shape[1]), np.float32) * old.std()
    return wide


def planned(file: GGUFFile, size: Size, type_name: str) -> dict[str, str]:
    """The type of every widened tensor under a mix of `gmoe quantize`; F32 where the source's norms are."""
    tensors = {name: replace(info, shape=size.wide(name, info.shape)) for name, info in file.tensors.items()}
    stand_in = SimpleNamespace(architecture=file.architecture, metadata=file.metadata, tensors=tensors)
    return Plan(stand_in, mix_named(type_name)).types  # type: ignore[arg-type]


def widen(
    source: Path,
    target: Path,
    n_embd: int | None = None,
    n_ff_exp: int | None = None,
    type_name: str = "F16",
    seed: int = 0,
) -> None:
    """Write the widened copy of `source`, one tensor in memory at a time; None keeps a size.

    `type_name` is a mix of `gmoe quantize`. Take an F16 or F32 source: a quantized one is rounded a second time.
    Raises ValueError for a file or a size that does not fit.
    """
    rng = np.random.default_rng(seed)
    with GGUFFile.open(source) as file:
        size = read_size(file, n_embd, n_ff_exp)
        kinds = planned(file, size, type_name)

        def edit(info: TensorInfo, tensor: QuantTensor) -> Iterable[tuple[str, QuantTensor]]:
            shape, kind = size.wide(info.name, info.shape), FORMATS[kinds[info.name]]
            if len(shape) == 1:
                wide = wide_norm(dequantize(tensor).numpy(), size, shape[0])
                return [(info.name, replace(quantize(wide[None], kind), shape=shape))]
            noise = rng if "ffn_gate_exps" in info.name or "ffn_up_exps" in info.name else None
            old = np.asarray(tensor.data).reshape(-1, *np.asarray(tensor.data).shape[-2:])  # [matrices, rows, bytes]
            data = np.empty((len(old), shape[-2], kind.row_bytes(shape[-1])), np.uint8)
            for n, rows in enumerate(old):
                matrix = dequantize(QuantTensor(rows, tensor.format, info.shape[-2:])).numpy()
                data[n] = quantize(wide_matrix(matrix, shape[-2:], noise), kind).data
            return [(info.name, QuantTensor(data.reshape(*shape[:-1], -1), kind, shape))]

        changed = {
            WIDTH: np.uint32(size.wide_embd),
            NEURONS: np.uint32(size.wide_ff_exp),
            "qwen3moe.feed_forward_length": np.uint32(size.wide_ff_exp),
            EPSILON: np.float32(float(file.metadata[EPSILON]) * size.n_embd / size.wide_embd),
            "general.file_type": np.uint32(file_type(mix_named(type_name))),
        }
        rewrite(file, target, edit, changed)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--n-embd", type=int, help="new embedding width")
    parser.add_argument("--n-ff-exp", type=int, help="new number of neurons of an expert")
    parser.add_argument("--type", default="F16", help="a type that `gmoe quantize` writes")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    try:
        widen(given.source, given.target, given.n_embd, given.n_ff_exp, given.type, given.seed)
    except ValueError as error:
        sys.exit(f"{given.source}: {error}")


if __name__ == "__main__":
    main()
