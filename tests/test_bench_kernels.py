"""The table of kernel levels: every level of this CPU in every cell, ggml behind a bar, and its products are ours."""

import ctypes
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from gmoe.kernels import cpu_ops
from gmoe.kernels.formats import FORMATS, QuantTensor

from tools import bench_kernels
from tools.ggml import Ggml

peer = pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed")


@pytest.fixture
def folder() -> Path:
    """Where llama-cpp-python has ggml's libraries."""
    found = find_spec("llama_cpp")
    assert found is not None and found.origin is not None
    return Path(found.origin).parent / "lib"


def table(*arguments: str) -> tuple[str, list[list[str]]]:
    """The first line and the rows' cells."""
    done = CliRunner().invoke(bench_kernels.main, [*arguments], catch_exceptions=False)
    said, _, _, _, *rows = done.output.splitlines()
    return said, [[cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip("|"))] for row in rows]


def test_levels_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_kernels, "ROUNDS", 2)
    said, rows = table("--levels", "all", "--formats", "Q4_K,F16")
    assert f"; {' / '.join(cpu_ops.levels())};" in said and "ggml" not in said
    for name, (first, *cells) in zip(("Q4_K", "F16"), rows, strict=True):
        assert first == name and len(cells) == 5
        for cell in cells[:3]:
            assert len([float(n) for n in cell.split(" / ")]) == len(cpu_ops.levels())
        assert [bool(cell) for cell in cells[3:]] == [name == "Q4_K"] * 2


def test_a_level_that_is_not_here_is_refused() -> None:
    with pytest.raises(ValueError, match="this CPU has no kernel level 'mmx'"):
        CliRunner().invoke(bench_kernels.main, ["--levels", "mmx", "--formats", "Q4_K"], catch_exceptions=False)


@peer
def test_ggml_stands_behind_a_bar(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(bench_kernels, "ROUNDS", 2)
    level = cpu_ops.levels()[0]
    said, [[name, *cells]] = table("--levels", level, "--formats", "Q4_K", "--ggml", str(folder))
    assert said.endswith("; behind the bar: ggml (repacked).") and name == "Q4_K"
    assert all(re.fullmatch(r"-?[\d.]+ \\\| -?[\d.]+( \(-?[\d.]+\))?", cell) for cell in cells[:3])
    assert all(re.fullmatch(r"-?[\d.]+", cell) for cell in cells[3:])


@peer
@pytest.mark.parametrize("name", ["Q4_0", "Q4_K", "Q6_K"])
def test_what_ggml_is_timed_with_are_our_products(folder: Path, name: str) -> None:
    form, rows, cols = FORMATS[name], 16, 512
    arena = np.stack([bench_kernels.blocks(form, rows * form.row_bytes(cols)).reshape(rows, -1)] * 2)
    arena[1] = arena[1, ::-1]
    x = torch.randn(3, cols)
    ggml = Ggml(folder)
    made = [ggml.products(form, arena, x.numpy(), 2), ggml.repacked(form, arena, x.numpy(), 2)]
    for products in filter(None, made):
        for n in (1, 0):
            products.compute(1)
            address = ggml.base.ggml_get_data(products.results[n])
            theirs = np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(ctypes.c_float)), (3, rows)).copy()
            ours = cpu_ops.matmul(x, QuantTensor(arena[n], form, (rows, cols))).numpy()
            assert np.abs(theirs - ours).max() < 2e-3 * np.abs(ours).max()
        products.close()
