"""What a card does that is full, small or out of order: a sentence, the CPU, or an answer all the same."""

import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import gmoe
from gmoe.cli.plan import plan
from gmoe.engine import selfcheck
from gmoe.experts import device_cache
from gmoe.experts.device import DeviceError
from gmoe.experts.device_cost import DeviceCosts, measure
from gmoe.experts.store import ExpertStore
from gmoe.experts.transfer import ThreadTransfer, Ticket
from tests.factory import write_model
from tests.fake_device import FakeDevice
from tests.test_device_offload import host_memory, memory

BROKEN = "CUDA error: an illegal memory access was encountered"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "m.gguf", "qwen3moe")


def _budgets(model: Path) -> tuple[str, str]:
    """Half of the experts on a card, half of them in host memory."""
    with gmoe.LLM.load(model, gmoe.RuntimeOptions(device="cpu", context=64)) as llm:
        return memory(llm.budget, "half"), host_memory(llm.budget, "half")


def _busy(name: str) -> FakeDevice:
    raise DeviceError("CUDA error: CUDA-capable device(s) is/are busy or unavailable")


@pytest.mark.parametrize("opened", [lambda name: FakeDevice(300 << 20), lambda name: FakeDevice(1 << 20), _busy])
def test_a_plan_nobody_asked_a_card_for(
    model: Path, monkeypatch: pytest.MonkeyPatch, opened: Callable[[str], FakeDevice]
) -> None:
    monkeypatch.setattr("gmoe.experts.device_auto.usable", lambda: True)
    monkeypatch.setattr("gmoe.experts.device.open_device", opened)
    run = CliRunner().invoke(plan, [str(model), "--host-memory", "1GiB"])
    assert run.exit_code == 0, run.output
    assert "in memory" in run.output and "run --device auto: the CPU, " in run.output


def test_a_request_that_cannot_begin(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with gmoe.LLM.load(model, gmoe.RuntimeOptions(device="cpu", context=64)) as llm:
        with monkeypatch.context() as patch:
            patch.setattr(llm.dispatch, "begin", lambda task="": 1 // 0)
            with pytest.raises(ZeroDivisionError):
                list(llm.run([3, 4, 5], gmoe.SamplingParams(max_tokens=2)))
        assert list(llm.run([3, 4, 5], gmoe.SamplingParams(max_tokens=2)))


def test_a_card_that_does_not_even_give_back(model: Path, monkeypatch: pytest.MonkeyPatch, card: FakeDevice) -> None:
    def broken(*given: object) -> None:
        raise RuntimeError(BROKEN)

    card.compiles = True
    monkeypatch.setattr("gmoe.experts.device_auto.usable", lambda: True)
    monkeypatch.setattr(selfcheck, "check", broken)
    monkeypatch.setattr(torch.cuda, "empty_cache", broken)
    with gmoe.LLM.load(model, gmoe.RuntimeOptions(context=64)) as llm:
        assert llm.device is None
        assert any("illegal memory access" in notice for notice in llm.notices)


def test_copies_that_all_fail_while_loading(model: Path, card: FakeDevice) -> None:
    budget, _ = _budgets(model)
    card.copy_errors = 1.0
    with pytest.raises(OSError, match="cop"):
        gmoe.LLM.load(model, gmoe.RuntimeOptions(device="cuda", context=64, gpu_memory=budget))


def test_reading_is_no_part_of_copying(model: Path, monkeypatch: pytest.MonkeyPatch, card: FakeDevice) -> None:
    budget, host = _budgets(model)
    now, old, found = [0.0], ExpertStore.wait, list[DeviceCosts]()

    def slow(store: ExpertStore, tickets: object) -> object:
        now[0] += 1000.0 * (type(store) is ExpertStore)
        return old(store, tickets)  # type: ignore[arg-type]

    def clock() -> float:
        now[0] += 0.01
        return now[0]

    def measured(*given: object) -> DeviceCosts:
        found.append(measure(*given, clock=clock))  # type: ignore[arg-type]
        return found[-1]

    monkeypatch.setattr(ExpertStore, "wait", slow)
    monkeypatch.setattr(device_cache, "measure", measured)
    options = gmoe.RuntimeOptions(device="cuda", context=64, max_sequences=1, gpu_memory=budget, host_memory=host)
    with gmoe.LLM.load(model, options):
        assert now[0] > 1000 and len(found) == 1 and found[0].copy < 1


@pytest.mark.parametrize("at", [1, 2, 5])
def test_a_copy_that_cannot_begin_is_begun_again_later(
    model: Path, monkeypatch: pytest.MonkeyPatch, card: FakeDevice, at: int
) -> None:
    budget, host = _budgets(model)
    how: dict[str, Any] = {"prefetch": "none", "working_set": "none", "evict": "lru", "miss": "load"}
    options = gmoe.RuntimeOptions(device="cuda", context=64, gpu_memory=budget, host_memory=host, **how)
    prompt, times, old = list(range(3, 13)), itertools.count(1), ThreadTransfer.submit

    def submit(*given: Any) -> Ticket:
        if next(times) == at:
            raise MemoryError
        return old(*given)

    with gmoe.LLM.load(model, options) as llm:
        want = llm.logits(prompt)
        monkeypatch.setattr(ThreadTransfer, "submit", submit)
        with pytest.raises(MemoryError):
            llm.logits(prompt)
        for _ in range(2):
            assert np.array_equal(llm.logits(prompt), want)


def test_a_load_that_fails_leaves_no_readers(model: Path, monkeypatch: pytest.MonkeyPatch, card: FakeDevice) -> None:
    _, host = _budgets(model)
    monkeypatch.setattr("gmoe.experts.device_auto.usable", lambda: True)
    card.memory = 8 << 20
    with gmoe.LLM.load(model, gmoe.RuntimeOptions(context=64, max_sequences=1, host_memory=host)) as llm:
        assert llm.device is None
        readers = [thread.name for thread in threading.enumerate() if thread.name.startswith("gmoe-read")]
        assert len(readers) == len(llm.store.transfer._threads)  # type: ignore[attr-defined]


def test_calibrate_wants_a_device_by_name(model: Path, tmp_path: Path) -> None:
    from gmoe.cli.main import cli

    text = tmp_path / "text"
    text.write_text("words")
    run = CliRunner().invoke(cli, ["calibrate", str(model), "-f", str(text), "--device", "auto"])
    assert run.exit_code == 2 and "cpu, cuda or cuda:N" in run.output
