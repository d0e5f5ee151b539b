"""What is lossy on a device: layers' mean experts there, and settings that were calibrated with it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import gmoe
from gmoe.cli.main import cli
from gmoe.experts import calibration
from gmoe.gguf.file import GGUFFile
from tests.factory import Shape, write_model
from tests.test_device_offload import host_memory, memory

IDS = [list(range(3, 14)), [7], [250, 9, 30], [7]]
SHAPE = Shape(embd=64, ff_exp=64, expert=16, used=4)


pytestmark = pytest.mark.usefixtures("card")


@pytest.fixture(scope="module", params=["qwen3moe", "gpt-oss"])
def model(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_model(tmp_path_factory.mktemp(request.param) / "m.gguf", request.param, quant="F16", shape=SHAPE)
    with load(path, device="cpu") as llm:
        recorder = llm.record(1000)
        llm.logits(list(range(40)))
        recorder.trace().save(path.with_name("given.trace"))
    path.with_name("text.txt").write_text("the cat sat on the mat and " * 40)
    return path


def load(path: Path, **options: Any) -> gmoe.LLM:
    given = {"context": 64, "max_sequences": 1, "device": "cuda", "activations": "float", "prefetch": "none"}
    given["kv_type"] = "f32"  # a cache of F16 makes much of the last bit
    return gmoe.LLM.load(path, gmoe.RuntimeOptions(**given | options))


def run(path: Path, **options: Any) -> tuple[list[np.ndarray], dict[str, Any]]:
    with load(path, **options) as llm:
        return [llm.logits(ids) for ids in IDS], llm.stats["actions"]


def test_a_mean_expert_serves_on_the_device_as_on_the_cpu(model: Path) -> None:
    with load(model, device="cpu") as llm:
        budget = llm.budget
    given = {"miss": "merged", "trace": model.with_name("given.trace")}
    exact, _ = run(model)
    same, actions = run(model, gpu_memory=memory(budget, "half"), policy={"share": 0}, **given)
    assert all(np.array_equal(a, b) for a, b in zip(same, exact, strict=True)) and actions["load"]["count"] > 0
    means = len(budget.layout.layers) * 3 * 64 * 64 // 32 * 34  # bytes in Q8_0, which count as the experts' memory
    one = str(int(memory(budget, "one")) + means)
    got, there = run(model, gpu_memory=one, policy={"share": 1}, **given)
    want, here = run(model, device="cpu", host_memory=host_memory(budget, "one slot"), policy={"share": 1}, **given)
    assert there["substitute"] == pytest.approx(here["substitute"]) and there["substitute"]["count"] > 0
    for a, b, c in zip(got, want, exact, strict=True):
        assert np.abs(a - b).max() <= 1e-4 * np.abs(b).max() < np.abs(a - c).max()


def calibrate(model: Path, *more: object) -> str:
    args = "calibrate", model, "-f", model.with_name("text.txt"), "-c", 16, "--chunks", 2, *more
    result = CliRunner().invoke(cli, [*map(str, args)])
    return "" if result.exit_code == 0 else result.stderr


def test_a_setting_holds_where_it_was_measured(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ladder = [{"miss": "skip", "policy": {"drop": 1024}}]
    monkeypatch.setattr("gmoe.cli.compare.ladder", lambda twin: iter(ladder))
    with load(model, device="cpu") as llm:
        budget = llm.budget
    on_card, in_host = memory(budget, "half"), host_memory(budget, "half")
    assert calibrate(model, "--device", "cuda", "--gpu-memory", on_card) == ""
    assert calibrate(model, "--host-memory", in_host) == ""
    assert "take less --gpu-memory" in calibrate(model, "--device", "cuda", "--gpu-memory", "1GiB")
    with GGUFFile.open(model) as file:
        known = calibration.load(file)
        assert [setting.reader == calibration.DEVICE for setting in known.settings] == [True, False]
        known.settings[:] = [replace(setting, kld_high=1.0, cost_high=0.9) for setting in known.settings[:1]]
        calibration.save(file, known)
    with load(model, max_kld=2.0, gpu_memory=on_card) as llm:
        llm.logits(IDS[0])
        assert llm.cache.setting == known.settings[0] and llm.stats["actions"]["skip"]["count"] > 0
    with load(model, max_kld=2.0, device="cpu", host_memory=in_host) as llm:
        assert llm.cache.setting is None and llm.options.miss == "auto"
    with load(model, max_kld=2.0, gpu_memory=memory(budget, "one")) as llm:
        assert llm.cache.setting is None
        assert any(f"calibrated with {known.settings[0].resident:.0%}" in notice for notice in llm.notices)
        llm.logits(IDS[0])
        assert llm.stats["actions"]["skip"]["count"] == 0
