"""Inflate a small qwen3moe GGUF to real expert sizes without changing what it says.

Added FFN neurons have random gate and up rows and exactly zero down columns, so they cost bytes and change nothing.
A wider embedding is padded with zeros; its norms are rescaled, since a mean square over more channels is smaller.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.gguf_reader import ReaderTensor
from numpy.typing import NDArray

from tools.demo.export import file_type, tensor_type

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


def read_size(reader: GGUFReader, wide_embd: int | None, wide_ff_exp: int | None) -> Size:
    """Old sizes from the file, new ones as given. Raises ValueError where the file or the wish does not fit."""
    field = reader.get_field("general.architecture")
    if field is None or field.contents() != "qwen3moe":
        raise ValueError("general.architecture: only qwen3moe can be widened")
    n_embd, n_ff_exp = (int(reader.fields[key].contents()) for key in (WIDTH, NEURONS))
    size = Size(n_embd, n_ff_exp, wide_embd or n_embd, wide_ff_exp or n_ff_exp)
    if size.wide_embd < n_embd or size.wide_ff_exp < n_ff_exp:
        raise ValueError(f"n_embd {n_embd} and n_ff_exp {n_ff_exp} can only grow")
    return size


def values(tensor: ReaderTensor, shape: tuple[int, ...]) -> Floats:
    """A tensor of the file in float32, row-major."""
    return np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32).reshape(shape)


def wide_matrices(name: str, old: Floats, size: Size, rng: np.random.Generator) -> Iterator[Floats]:
    """The widened tensor, one expert (or the whole of a tensor without experts) at a time."""
    shape = size.wide(name, old.shape)
    if old.ndim == 1:
        wide = np.zeros(shape, np.float32)
        wide[: len(old)] = old if shape == old.shape else old * np.float32((size.n_embd / size.wide_embd) ** 0.5)
        yield wide
        return
    grows_neurons = "ffn_gate_exps" in name or "ffn_up_exps" in name
    for matrix in old if old.ndim == 3 else old[None]:
        rows, columns = matrix.shape
        wide = np.zeros(shape[-2:], np.float32)
        wide[:rows, :columns] = matrix
        if grows_neurons:
            wide[rows:] = rng.standard_normal((shape[-2] - rows, shape[-1]), np.float32) * matrix.std()
        yield wide


def copy_metadata(reader: GGUFReader, writer: GGUFWriter, changed: dict[str, Any]) -> None:
    """Every key of the file, with the values of `changed` where it names one."""
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, changed.get(key, field.contents()), kind, inner)


def widen(
    source: Path,
    target: Path,
    n_embd: int | None = None,
    n_ff_exp: int | None = None,
    type_name: str = "F16",
    seed: int = 0,
) -> None:
    """Write the widened copy of `source`, holding one expert in memory at a time; None keeps a size.

    Block types need n_embd and n_ff_exp to be multiples of their block. Take an F16 or F32 source: a quantized one is
    rounded a second time. Raises ValueError for a file or a size that does not fit.
    """
    reader = GGUFReader(source)
    size = read_size(reader, n_embd, n_ff_exp)
    wanted = GGMLQuantizationType[type_name]
    epsilon = float(reader.fields[EPSILON].contents()) * size.n_embd / size.wide_embd
    writer = GGUFWriter(target, "qwen3moe")
    changed = {
        WIDTH: size.wide_embd,
        NEURONS: size.wide_ff_exp,
        EPSILON: epsilon,
        "general.file_type": file_type(type_name),
    }
    copy_metadata(reader, writer, changed | {"qwen3moe.feed_forward_length": size.wide_ff_exp})
    shapes = {t.name: tuple(int(n) for n in reversed(t.shape)) for t in reader.tensors}
    kinds = {name: tensor_type(name, shape, wanted) for name, shape in shapes.items()}
    for name, kind in kinds.items():
        shape = size.wide(name, shapes[name])
        bytes_shape = gguf.quant_shape_to_byte_shape(shape, kind)
        writer.add_tensor_info(name, bytes_shape, np.dtype(np.uint8), int(np.prod(bytes_shape)), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    assert writer.fout is not None
    file = writer.fout[0]
    rng = np.random.default_rng(seed)
    for tensor in reader.tensors:
        writer.write_padding(file, file.tell())
        for matrix in wide_matrices(tensor.name, values(tensor, shapes[tensor.name]), size, rng):
            file.write(gguf.quantize(matrix, kinds[tensor.name]).tobytes())
    writer.write_padding(file, file.tell())
    writer.close()


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--n-embd", type=int, help="new embedding width")
    parser.add_argument("--n-ff-exp", type=int, help="new number of neurons of an expert")
    parser.add_argument("--type", default="F16", help="F32, F16 or a type that gguf can quantize to")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    try:
        widen(given.source, given.target, given.n_embd, given.n_ff_exp, given.type, given.seed)
    except ValueError as error:
        sys.exit(f"{given.source}: {error}")


if __name__ == "__main__":
    main()
