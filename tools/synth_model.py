"""A GGUF of a real model's shape with random weights, for timing: any type mix, a usable tokenizer, written as fast
as random bytes come.

    python -m tools.synth_model m.gguf --like qwen3-30b-a3b --layers 12 --experts 64 --vocab 32000 --types Q4_K
    python -m tools.synth_model m.gguf --like gpt-oss-20b --layers 6 --types MXFP4 --override 'attn_.*=Q8_0'
    python -m tools.synth_model m.gguf --from real.gguf          # any architecture: the same tensors and types, random
"""

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gmoe.kernels.formats import FORMATS, QuantFormat, QuantTensor
from gmoe.kernels.reference import dequantize

from tools.shapes import SHAPES, Shape, metadata, tensors

CHUNK = 32 << 20  # bytes of random blocks made at once
SAMPLE = 512  # blocks whose values say how a type's random bytes are scaled
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# What llama.cpp takes where a row is no multiple of 256.
SMALLER_BLOCKS = {
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
    "Q2_K": "IQ4_NL",
    "Q3_K": "IQ4_NL",
    "IQ4_XS": "IQ4_NL",
}
MIXES = {"Q2_K_M": ("Q2_K", "Q3_K"), "Q3_K_M": ("Q3_K", "Q5_K"), "Q4_K_M": ("Q4_K", "Q6_K"), "Q5_K_M": ("Q5_K", "Q6_K")}

UE4M3 = np.array([(m if e == 0 else 2.0 ** (e - 1) * (8 + m)) * 2.0**-10 for e in range(16) for m in range(8)])[:127]

Fixed = dict[str, float | int]


def type_of(name: str, shape: tuple[int, ...], types: str, layers: int, overrides: Sequence[tuple[str, str]]) -> str:
    """The type of a tensor: norms, biases and routers F32, an override's, the mix's as llama.cpp mixes, or `types`."""
    if (
        len(shape) < 2
        or shape[-1] == 1
        or "ssm_norm" in name
        or "ffn_gate_inp" in name
        or "conv1d" in name
        or name.endswith((".bias", "ssm_a"))
    ):
        return "F32"
    chosen = next((kind for pattern, kind in overrides if re.search(pattern, name)), None)
    if chosen is None and types in MIXES:
        low, high = MIXES[types]
        layer = int(name.split(".")[1]) if name.startswith("blk.") else 0
        more = layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
        chosen = high if name == "output.weight" or (more and re.search("attn_v|ffn_down", name)) else low
    chosen = chosen or types
    if shape[-1] % FORMATS[chosen].block_size:
        chosen = SMALLER_BLOCKS.get(chosen, "IQ4_NL" if shape[-1] % 32 == 0 else "F16")
    return chosen


@cache
def scaling(format: QuantFormat) -> tuple[Fixed, float]:
    """What the scale fields of random blocks are, relative to `d`, and the spread of their values at d = 1."""
    if format.scales == "e8m0":
        return {}, float(_values(format, {"e": 127}).std())
    if format.scales == "ue4m3":
        return {}, float(_values(format, {"d": 64}).std())
    if format.scales == "iq1_m":
        return {}, float(_values(format, {"d": 1.0}).std())
    fixed: Fixed = {"d": 1.0}
    low = next((f.name for f in format.fields if f.name in ("dmin", "m")), None)
    if low:  # centred
        mean, shift = _values(format, {"d": 1.0, low: 0.0}).mean(), _values(format, {"d": 0.0, low: 1.0}).mean()
        fixed[low] = float(-mean / shift)
    return fixed, float(_values(format, fixed).std())


def _values(format: QuantFormat, fixed: Fixed) -> np.ndarray:
    blocks = _blocks(np.random.default_rng(0), format, SAMPLE, fixed, 1.0)
    return dequantize(QuantTensor(blocks, format, (SAMPLE, format.block_size))).numpy()


def _blocks(rng: np.random.Generator, format: QuantFormat, n: int, fixed: Fixed, scale: float) -> np.ndarray:
    """Random bytes [n, type_size] with the scales that are given."""
    blocks = np.frombuffer(rng.bytes(n * format.type_size), np.uint8).reshape(n, -1).copy()
    if format.scales == "iq1_m":  # the four top nibbles are one float16
        words = blocks[:, format.offset("scales") :].view(np.uint16)
        bits = np.float16(fixed.get("d", 1.0) * scale).view(np.uint16)
        for i in range(4):
            words[:, i] = (words[:, i] & 0x0FFF) | ((bits >> (4 * i)) & 15) << 12
        return blocks
    for field in format.fields:
        if field.name in fixed:
            at = format.offset(field.name)
            value = fixed[field.name] if field.dtype == "u1" else fixed[field.name] * scale
            blocks[:, at : at + field.nbytes] = np.array([value], field.dtype).view(np.uint8)
    return blocks


def random_tensor(rng: np.random.Generator, format: QuantFormat, count: int, spread: float, file: Any) -> None:
    """Write `count` elements whose standard deviation is `spread`."""
    if format.name in ("F32", "F16", "BF16"):
        for at in range(0, count, CHUNK // 4):
            values = rng.standard_normal(min(CHUNK // 4, count - at), np.float32) * np.float32(spread)
            if format.name == "BF16":
                file.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())
            else:
                file.write(values.astype(format.fields[0].dtype).tobytes())
        return
    fixed, std = scaling(format)
    if format.scales == "e8m0":
        fixed = {"e": 127 + round(np.log2(spread / std))}
    if format.scales == "ue4m3":
        fixed = {"d": int(np.abs(UE4M3 - spread / std).argmin())}
    n, most = count // format.block_size, CHUNK // format.type_size
    for at in range(0, n, most):
        file.write(_blocks(rng, format, min(most, n - at), fixed, spread / std).tobytes())


def vocabulary(n: int) -> tuple[list[str], list[str]]:
    """`n` tokens of a byte-level BPE and its merges: bytes, pairs and longer runs of letters, three specials."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = iter(range(256, 512))
    tokens = [chr(b) if b in plain else chr(next(other)) for b in range(256)]
    if n < len(tokens) + len(SPECIALS):
        raise ValueError(f"a vocabulary of {n} tokens; it needs {len(tokens) + len(SPECIALS)} at least")
    letters = "etaoinshrdlcumwfgypbvkjxqz"
    merges: list[str] = []
    firsts, pairs = ["Ġ", *letters], [a + b for a in letters for b in letters]
    runs = [*((f, b) for f in firsts for b in letters), *((p, b) for p in pairs for b in letters)]
    runs += ((p, q) for p in pairs for q in pairs)
    for a, b in runs[: n - len(tokens) - len(SPECIALS)]:
        merges.append(f"{a} {b}")
        tokens.append(a + b)
    return [*tokens, *SPECIALS], merges


def add_tokenizer(writer: GGUFWriter, n: int) -> None:
    """The vocabulary, its specials, ChatML."""
    tokens, merges = vocabulary(n)
    kinds = [gguf.TokenType.NORMAL] * (n - len(SPECIALS)) + [gguf.TokenType.CONTROL] * len(SPECIALS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(n - 3)
    writer.add_eos_token_id(n - 1)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHATML)


def spread_of(name: str, shape: tuple[int, ...]) -> float:
    """The standard deviation that keeps rows at their size and lets routers and logits differ."""
    return (3.0 if "output.weight" == name or "ffn_gate_inp" in name else 1.0) / float(np.sqrt(shape[-1]))


def write(path: Path, writer: GGUFWriter, plan: Sequence[tuple[str, tuple[int, ...], str]], seed: int) -> None:
    """Stream the file: `plan` has name, row-major shape and type of every tensor; the metadata is in the writer."""
    for name, shape, kind in plan:
        size = FORMATS[kind].row_bytes(shape[-1]) * int(np.prod(shape[:-1]))
        ggml = GGMLQuantizationType[kind]
        bytes_shape = gguf.quant_shape_to_byte_shape(shape, ggml)
        writer.add_tensor_info(name, bytes_shape, np.dtype(np.uint8), size, raw_dtype=ggml)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    assert writer.fout is not None
    file, rng = writer.fout[0], np.random.default_rng(seed)
    for name, shape, kind in plan:
        writer.write_padding(file, file.tell())
        if name.endswith("norm.weight"):
            file.write((1 + 0.1 * rng.standard_normal(shape, np.float32)).tobytes())
        elif name.endswith("ssm_a"):  # how fast states are forgotten
            file.write((-np.exp(rng.standard_normal(shape, np.float32))).tobytes())
        else:
            spread = 0.02 if name.endswith(".bias") else spread_of(name, shape)
            random_tensor(rng, FORMATS[kind], int(np.prod(shape)), spread, file)
    writer.write_padding(file, file.tell())
    writer.close()


def synthesize(path: Path, shape: Shape, types: str, overrides: Sequence[tuple[str, str]] = (), seed: int = 0) -> None:
    """Write a model of this shape; a type that is unknown is a `ValueError` naming it."""
    for kind in (types, *(kind for _, kind in overrides)):
        if kind not in FORMATS and kind not in MIXES:
            raise ValueError(f"the type {kind!r} is none of {', '.join([*MIXES, *FORMATS])}")
    plan = [(name, dims, type_of(name, dims, types, shape.layer, overrides)) for name, dims in tensors(shape)]
    writer = GGUFWriter(path, shape.architecture)
    writer.add_name(f"random {shape.architecture} {types}")
    add = {
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        bool: writer.add_bool,
        list: writer.add_array,
    }
    for key, value in metadata(shape).items():
        add[type(value)](f"{shape.architecture}.{key}", value)
    add_tokenizer(writer, shape.vocab)
    write(path, writer, plan, seed)


def imitate(path: Path, source: Path, seed: int = 0) -> None:
    """Write random weights under the metadata, names, shapes and types of another file."""
    reader = GGUFReader(source)
    writer = GGUFWriter(path, str(reader.fields["general.architecture"].contents()))
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            kind = field.types[0]
            inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), kind, inner)
    plan = [(t.name, tuple(int(n) for n in reversed(t.shape)), t.tensor_type.name) for t in reader.tensors]
    write(path, writer, plan, seed)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    parser.add_argument("--like", choices=sorted(SHAPES), default="qwen3-30b-a3b")
    parser.add_argument("--from", dest="source", type=Path, help="a GGUF whose metadata, tensors and types are taken")
    for name in ("layers", "experts", "vocab"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--types", default="Q4_K_M", help="a type, or a mix: " + ", ".join(MIXES))
    parser.add_argument("--override", action="append", default=[], metavar="REGEX=TYPE")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    sizes = {"layer": given.layers, "expert": given.experts, "vocab": given.vocab}
    try:
        if given.source:
            imitate(given.target, given.source, given.seed)
        else:
            overrides = [tuple(item.rsplit("=", 1)) for item in given.override]
            if any(len(pair) != 2 for pair in overrides):
                raise ValueError("--override is REGEX=TYPE")
            shape = replace(SHAPES[given.like], **{name: n for name, n in sizes.items() if n is not None})
            synthesize(given.target, shape, given.types, overrides, given.seed)
    except (ValueError, OSError) as error:
        sys.exit(f"{given.target}: {error}")


if __name__ == "__main__":
    main()
