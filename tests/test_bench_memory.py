"""Memory by stage: what comes and goes within a stage is seen, and the model's own pages are left out."""

from pathlib import Path

import numpy as np
import pytest

from gmoe.machine import resident
from tests.factory import write_model
from tools import bench_memory

pytestmark = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="there is no /proc")


def test_what_comes_and_goes_is_seen() -> None:
    def work() -> int:
        return int(np.ones(32 << 20, np.uint8).sum())

    _, before, _ = bench_memory.most(lambda: None)
    made, after, peak = bench_memory.most(work)
    assert made == 32 << 20
    assert peak - before > 30 << 20 and after - before < 8 << 20


def test_pages_of_the_file_are_told_from_others(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(8 << 20))
    assert resident(path) == 0
    mapped = np.memmap(path, np.uint8, "r")
    assert mapped.sum() == 0 and resident(path) == 8 << 20


def test_a_model_goes_through_all_stages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_model(tmp_path / "m.gguf", "qwen3moe")
    bench_memory.main([str(path), "--prompt", "32", "--prompts", "2", "-t", "1"])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows][3:] == [
        "importing gmoe", "loading", "the first token", "32 tokens, prompt 1", "32 tokens, prompt 2",
        "a token after them",
    ]  # fmt: skip
    assert all(0 < int(after) <= int(peak) for _, after, peak in rows)
