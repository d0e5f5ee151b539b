"""Spoiled headers are read or refused in a sentence; `python -m tests.test_gguf_fuzz 10000` tries many more."""

import struct
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gmoe.gguf.file import GGUFError, GGUFFile
from gmoe.gguf.hparams import Hparams
from gmoe.gguf.layout import ExpertLayout
from tests.factory import write_model

FIXTURES = Path(__file__).parents[2] / "shared" / "fixtures" / "open"
EXTREMES = (0, 1, 2, 31, 255, (1 << 31) - 1, (1 << 32) - 1, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)


def read_or_refuse(path: Path, data: bytes) -> bool:
    """Whether all of it could be read; nothing but a GGUFError that names the file may come out."""
    path.write_bytes(data)
    try:
        with GGUFFile.open(path) as file:
            for value in file.metadata.values():
                if hasattr(value, "__len__"):
                    list(value)
            for name in file.tensors:
                file.view(name).data[..., -1].sum()
            hparams = Hparams.from_metadata(file.metadata, str(path))
            ExpertLayout(file, hparams.n_block, hparams.n_expert)
    except GGUFError as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)
        return False
    return True


def header_size(path: Path) -> int:
    with GGUFFile.open(path) as file:
        return min(info.offset for info in file.tensors.values())


def mutants(path: Path, count: int, seed: int) -> Iterator[bytes]:
    """The file cut at any byte, with bytes of its header flipped, or with an extreme number written into it."""
    data, header = path.read_bytes(), header_size(path)
    rng = np.random.default_rng(seed)
    for n in range(count):
        changed = bytearray(data)
        if n % 4 == 0:
            del changed[rng.integers(0, header if n % 8 else len(data)) :]
        elif n % 4 == 1:
            at, extreme = int(rng.integers(4, header - 8)), EXTREMES[rng.integers(len(EXTREMES))]
            changed[at : at + 8] = struct.pack("<Q", extreme)
        else:
            for at in rng.integers(4, header, rng.integers(1, 6)):
                changed[at] ^= 1 << rng.integers(8) if n % 4 == 2 else rng.integers(1, 256)
        yield bytes(changed)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("fuzz") / "tiny.gguf", "qwen3moe", quant="Q8_0")


def test_mutants_are_read_or_refused(model: Path, tmp_path: Path) -> None:
    read = [read_or_refuse(tmp_path / "m.gguf", data) for data in mutants(model, 500, seed=1)]
    assert 0 < sum(read) < len(read)


@pytest.mark.skipif(not FIXTURES.exists(), reason="no shared fixtures beside the checkout")
def test_mutants_of_the_shared_fixtures(tmp_path: Path) -> None:
    for seed, path in enumerate(sorted(FIXTURES.glob("*-s-F32.gguf"))):
        for data in mutants(path, 40, seed):
            read_or_refuse(tmp_path / "m.gguf", data)


def test_no_mutant_takes_more_memory_than_its_size(model: Path, tmp_path: Path) -> None:
    data = list(mutants(model, 40, seed=3))
    path = tmp_path / "m.gguf"
    for mutant in data:
        path.write_bytes(mutant)
        tracemalloc.start()
        try:
            GGUFFile.open(path)
        except GGUFError:
            pass
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < max(len(mutant), 100_000)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 4), st.integers(0, 4), st.sampled_from([2, 3]))
def test_any_bytes_after_a_header(
    tmp_path_factory: pytest.TempPathFactory, body: bytes, keys: int, tensors: int, version: int
) -> None:
    header = b"GGUF" + struct.pack("<IQQ", version, tensors, keys)
    read_or_refuse(tmp_path_factory.getbasetemp() / "any.gguf", header + body)


def main(count: int) -> None:
    """Try `count` mutants of a generated file of each kind and of the shared fixtures; an escaped error ends it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        sources = [write_model(Path(folder) / f"{a}.gguf", a, quant="Q8_0") for a in ("qwen3moe", "deepseek2", "llama")]
        sources += sorted(FIXTURES.glob("*-q-*.gguf"))[:5]
        begin, slowest, read, done = time.perf_counter(), 0.0, 0, 0
        for seed, source in enumerate(sources):
            for data in mutants(source, -(-count // len(sources)), seed):
                started = time.perf_counter()
                read += read_or_refuse(path, data)
                slowest, done = max(slowest, time.perf_counter() - started), done + 1
    seconds = time.perf_counter() - begin
    print(f"{done} mutants: {read} read, {done - read} refused; {seconds:.0f} s, the slowest {slowest:.3f} s")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
