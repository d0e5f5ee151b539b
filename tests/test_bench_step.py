"""Where a token's time goes: the parts of a recorded step, and the step without the recording, in turn."""

from pathlib import Path

import pytest
import torch

from gmoe.llm import LLM
from gmoe.options import RuntimeOptions
from tests.factory import write_model
from tools import bench_step


def test_parts_are_times_of_the_step(tmp_path: Path) -> None:
    options = RuntimeOptions(context=64, threads=1, max_sequences=1)
    with LLM.load(write_model(tmp_path / "m.gguf", "qwen3moe"), options) as llm:
        before = llm.logits([3, 4, 5])
        found = dict(bench_step.parts(llm, 3))
        assert list(found) == [
            "a recorded step", "embedding", "kernels of the blocks", "logits", "the rest", "not recorded",
        ]  # fmt: skip
        assert all(microseconds > 0 for microseconds in found.values())
        assert torch.equal(torch.as_tensor(llm.logits([3, 4, 5])), torch.as_tensor(before))


def test_seconds_since_it_was_asked() -> None:
    timed = bench_step.Timed(lambda a, b: a + b)
    assert timed(2, 3) == 5 and timed.taken() > 0.0
    assert timed.taken() == 0.0


def test_it_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench_step.main([str(write_model(tmp_path / "m.gguf", "qwen3moe")), "-t", "1", "--rounds", "1"])
    assert capsys.readouterr().out.splitlines()[0] == "| of a token | us |"
