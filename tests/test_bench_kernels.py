"""The table of kernel levels: every level of this CPU in every cell, and no product without its weights."""

import pytest
from click.testing import CliRunner
from gmoe.kernels import cpu_ops

from tools import bench_kernels


def test_levels_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_kernels, "ROUNDS", 2)
    done = CliRunner().invoke(bench_kernels.main, ["--levels", "all", "--formats", "Q4_K,F16"], catch_exceptions=False)
    said, rows = done.output.splitlines()[0], done.output.splitlines()[-2:]
    assert f"; {' / '.join(cpu_ops.levels())};" in said
    for name, row in zip(("Q4_K", "F16"), rows, strict=True):
        first, *cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert first == name and len(cells) == 4
        for cell in cells[:2]:
            assert len([float(n) for n in cell.split(" / ")]) == len(cpu_ops.levels())
        assert [bool(cell) for cell in cells[2:]] == [name == "Q4_K"] * 2


def test_a_level_that_is_not_here_is_refused() -> None:
    with pytest.raises(ValueError, match="this CPU has no kernel level 'mmx'"):
        CliRunner().invoke(bench_kernels.main, ["--levels", "mmx", "--formats", "Q4_K"], catch_exceptions=False)
