"""Round-trip error and speed of every encoder beside llama.cpp's on the same rows: `python -m tools.bench_encoders`.

Needs `pip install llama-cpp-python`; its shared library's `ggml_quantize_chunk` is called on the same floats.
"""

import argparse
import ctypes
import platform
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import gguf
import numpy as np
from gmoe.kernels.formats import FORMATS, QuantTensor
from gmoe.kernels.quantize import encodable, quantize
from gmoe.kernels.reference import dequantize

from gmoe.gguf.file import GGUFFile

ROWS, COLS = 256, 2048


def samples(seed: int = 0) -> dict[str, np.ndarray]:
    """Rows of several shapes of distribution, float32 [ROWS, COLS]."""
    rng = np.random.default_rng(seed)
    gauss = rng.standard_normal((ROWS, COLS))
    outliers = gauss * np.where(rng.random((ROWS, COLS)) < 0.005, 12, 1)
    found = {"Gauss": gauss, "t(4)": rng.standard_t(4, (ROWS, COLS)), "outliers": outliers}
    return {name: (rows * 0.02).astype(np.float32) for name, rows in found.items()}


def model_rows(path: Path) -> np.ndarray:
    """Rows of a model's own experts, float32 [n, COLS], up to ROWS of them."""
    with GGUFFile.open(path) as file:
        names = [name for name in file.tensors if "_exps" in name]
        floats = [dequantize(file.view(name)).numpy().reshape(-1) for name in names[:12]]
    flat = np.concatenate(floats)
    return flat[: min(ROWS, len(flat) // COLS) * COLS].reshape(-1, COLS)


class Peer:
    """llama.cpp's encoders, from the library that llama-cpp-python brings."""

    def __init__(self) -> None:
        import llama_cpp

        folder = Path(llama_cpp.__file__).parent / "lib"
        self.version = llama_cpp.__version__
        for name in ("libggml-base.so", "libggml.so"):
            if (folder / name).exists():
                self.lib = ctypes.CDLL(str(folder / name))
                break
        self.lib.ggml_quantize_chunk.restype = ctypes.c_size_t
        self.lib.ggml_quantize_chunk.argtypes = [
            ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p,
        ]  # fmt: skip

    def quantize(self, x: np.ndarray, name: str, weight: np.ndarray | None) -> QuantTensor:
        """The same rows by llama.cpp."""
        row, kind = FORMATS[name], int(gguf.GGMLQuantizationType[name])
        out = np.zeros((len(x), row.row_bytes(x.shape[1])), np.uint8)
        matrix = None if weight is None else weight.ctypes.data
        self.lib.ggml_quantize_chunk(kind, x.ctypes.data, out.ctypes.data, 0, *x.shape, matrix)
        return QuantTensor(out, row, x.shape)


def error(x: np.ndarray, q: QuantTensor, weight: np.ndarray | None = None) -> float:
    """Relative rms error, weighted by column."""
    w = np.ones(x.shape[1]) if weight is None else weight.astype(np.float64)
    diff = dequantize(q).numpy().astype(np.float64) - x
    return float(np.sqrt((w * diff**2).sum() / (w * x.astype(np.float64) ** 2).sum()))


def timed(call: Callable[[], object]) -> float:
    """Seconds, the median of three."""
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return sorted(seconds)[1]


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="an F16 or F32 GGUF whose experts are encoded as well")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/encoders.md"))
    given = parser.parse_args()
    peer, rows = Peer(), samples()
    if given.model:
        rows["model"] = model_rows(given.model)
    weight = np.random.default_rng(1).lognormal(0, 1, COLS).astype(np.float32)
    lines = [
        "# Encoders beside llama.cpp's", "",
        f"`python -m tools.bench_encoders`, {date.today()}, {platform.processor() or platform.machine()}, one thread; "
        f"llama-cpp-python {peer.version}.", "",
        "Relative rms error in per cent, ours / llama.cpp's; *weighted* is Gauss with an importance of each column, "
        "given to both, and the error weighted by it. Speed is ours over llama.cpp's.", "",
        "| type | bits | " + " | ".join(rows) + " | weighted | largest ratio | speed |",
        "|---|---|" + "---|" * (len(rows) + 3),
    ]  # fmt: skip
    for name in encodable():
        if name == "F32":
            continue
        row, cells, ratios = FORMATS[name], [], []
        cases = [(x, None) for x in rows.values()] + [(rows["Gauss"], weight)]
        for x, w in cases:
            ours, theirs = error(x, quantize(x, row, w), w), error(x, peer.quantize(x, name, w), w)
            ratios.append(ours / theirs)
            cells.append(f"{100 * ours:.3f} / {100 * theirs:.3f}")
        x = rows["Gauss"]
        speed = timed(lambda: peer.quantize(x, name, None)) / timed(lambda: quantize(x, row, threads=1))  # noqa: B023
        bits = row.type_size * 8 / row.block_size
        lines.append(f"| {name} | {bits:g} | {' | '.join(cells)} | {max(ratios):.3f} | {speed:.2f} |")
    given.out.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
