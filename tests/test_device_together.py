"""Several models on one card, each in a thread of its own: answers as alone, and who records a graph is alone."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from gmoe.kernels.triton import tuned

import gmoe
from gmoe.experts.device_turns import Turns
from gmoe.library.home import home
from tests import fake_device
from tests.factory import write_model
from tests.fake_device import FakeDevice
from tests.test_device_offload import memory
from tests.test_device_replay import graphs

PROMPTS = [[(7 * n + k * n * n // 5) % 250 + 3 for n in range(length)] for k, length in enumerate((5, 34))]
GREEDY = gmoe.SamplingParams(max_tokens=6, temperature=0)


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    return [write_model(tmp_path / f"{name}.gguf", name) for name in ("qwen3moe", "gpt-oss")]


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> Turns:
    """Of a card that each model opens for itself, as a process does."""
    made = Turns(patience=10.0)
    monkeypatch.setattr("gmoe.llm.open_device", lambda name: FakeDevice(turns=made) if name != "cpu" else None)
    fake_device.spoiled.clear()
    return made


def load(path: Path, **options: str) -> gmoe.LLM:
    given = {"context": 128, "max_sequences": 2, "device": "cuda", "miss": "load", "prefetch": "none"}
    return gmoe.LLM.load(path, gmoe.RuntimeOptions(**given | options))


def answers(llm: gmoe.LLM) -> list[list[int | None]]:
    """One after another, then two at a time."""
    said = [[event.token_id for event in llm.run(ids, GREEDY, ignore_end=True)] for ids in PROMPTS]
    streams = [llm.run(ids, GREEDY, ignore_end=True) for ids in PROMPTS]
    return said + [[event.token_id for event in stream] for stream in streams]


def often(llm: gmoe.LLM) -> list[list[int | None]]:
    """For longer than a model takes to load, while which nobody records."""
    return [said for _ in range(4) for said in answers(llm)]


def test_two_models_answer_as_each_alone(models: list[Path], turns: Turns) -> None:
    """One with all of its experts there, one with half; a third is loaded meanwhile."""
    with load(models[1], device="cpu") as llm:
        options = {"gpu_memory": memory(llm.budget, "half")}
    want = []
    for path, its in zip(models, ({}, options), strict=True):
        with load(path, **its) as llm:
            want.append(answers(llm))
    with load(models[0]) as first, load(models[1], **options) as second, ThreadPoolExecutor() as threads:
        running = [threads.submit(often, llm) for llm in (first, second)]
        with load(models[0]) as third:
            assert answers(third) == want[0]
            assert graphs(third)
        assert [future.result() for future in running] == [4 * said for said in want]
        assert graphs(first) and not graphs(second)
    assert not fake_device.spoiled


def test_a_model_keeps_the_launches_that_it_was_loaded_with(models: list[Path], turns: Turns) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    from gmoe.kernels.triton.matmul import Launch

    faster = [Launch(4, 1, 2, 1), Launch(16, 1, 4, 1)]
    key = tuned.key("matmul", "Q4_0", 1, 64, 64)
    path = home() / tuned.FILE
    try:
        tuned.keep(path, "a fake card", {key: faster[0]})
        with load(models[0]) as first:
            tuned.keep(path, "a fake card", {key: faster[1]})
            with load(models[1]) as second:
                for llm, how in ((first, faster[0]), (second, faster[1])):
                    assert llm.dispatch.kernels.choices.of(key, Launch(8, 1, 4, 1)) == how
    finally:
        path.unlink()


def started(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_who_records_is_alone() -> None:
    turns, inside, leave, order = Turns(patience=10.0), threading.Event(), threading.Event(), list[str]()

    def works() -> None:
        with turns.at_work(), turns.at_work():
            inside.set()
            leave.wait(10)
            order.append("left")

    def records() -> None:
        with turns.at_work(), turns.alone() as alone, turns.at_work():
            order.append(f"alone: {alone}")

    working = started(works)
    assert inside.wait(10)
    recording = started(records)
    while turns._alone is None:
        pass
    coming = started(records)  # is not let in before the first has recorded
    leave.set()
    for thread in (working, recording, coming):
        thread.join(10)
        assert not thread.is_alive()
    assert order == ["left", "alone: True", "alone: True"] and not turns._at_work


def test_who_would_wait_long_does_not_record() -> None:
    turns, inside, leave = Turns(patience=0.01), threading.Event(), threading.Event()

    def works(loading: bool) -> None:
        with turns.at_work(loading):
            inside.set()
            leave.wait(10)

    for loading in (False, True):
        inside.clear(), leave.clear()
        turns.patience = 60.0 if loading else 0.01  # a load is not waited for at all
        working = started(lambda loading=loading: works(loading))
        assert inside.wait(10)
        with turns.at_work(True), turns.alone() as alone:  # its own load is not in its way
            assert not alone
        leave.set()
        working.join(10)
        with turns.at_work(True), turns.alone() as alone:
            assert alone
