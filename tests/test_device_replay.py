"""Steps that a device records, on the fake device: the same bits, one launch, and what makes it stop."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


import gmoe
from gmoe.engine.replay import Replay
from gmoe.experts.device import DeviceError
from gmoe.experts.device_store import DeviceStore
from tests.factory import ARCHITECTURES, write_model
from tests.fake_device import FakeDevice, FakeGraph

IDS = [(7 * n + n * n // 5) % 250 + 3 for n in range(40)]


def load(path: Path, **options: Any) -> gmoe.LLM:
    given = {"context": 512, "max_sequences": 1, "device": "cuda", "miss": "load"}
    return gmoe.LLM.load(path, gmoe.RuntimeOptions(**given | options))


def replay_of(llm: gmoe.LLM) -> Replay:
    model = llm._engine.runner.model
    assert isinstance(model, Replay)
    return model


def graphs(llm: gmoe.LLM) -> dict[int, FakeGraph]:
    """By reach."""
    found = {}
    for (reach, _), step in replay_of(llm)._steps.items():
        if step is not None:
            assert isinstance(step.tape, FakeGraph)
            found[reach] = step.tape
    return found


def plain(llm: gmoe.LLM, ids: list[int]) -> np.ndarray:
    """Logits of single steps, none of them recorded."""
    replay = replay_of(llm)
    before, replay._never = replay._never, True
    try:
        return llm.logits(ids, 1)
    finally:
        replay._never = before


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_recorded_step_gives_the_bits_of_its_kernels(architecture: str, tmp_path: Path, card: FakeDevice) -> None:
    with load(write_model(tmp_path / "m.gguf", architecture)) as llm:
        hits = llm.store.stats.hits
        got = llm.logits(IDS[:5], 1)
        counted = llm.store.stats.hits - hits
        assert graphs(llm)[256].runs == 3
        assert np.array_equal(got, plain(llm, IDS[:5])) and got.std() > 0.05
        assert llm.store.stats.hits - hits == 2 * counted


def test_a_longer_reach_is_recorded_anew(tmp_path: Path, card: FakeDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gmoe.engine.replay.reach", lambda n: 32 if n <= 32 else 64)
    with load(write_model(tmp_path / "m.gguf", "qwen3moe")) as llm:
        got = llm.logits(IDS, 1)
        assert {reach: graph.runs for reach, graph in graphs(llm).items()} == {32: 30, 64: 6}
        assert np.array_equal(got, plain(llm, IDS))


def test_tritons_kernels_are_recorded(tmp_path: Path, card: FakeDevice, triton: None) -> None:
    with load(write_model(tmp_path / "m.gguf", "qwen3moe")) as llm:
        got = llm.logits(IDS[:3], 1)
        assert graphs(llm)[256].runs == 1
        assert np.array_equal(got, plain(llm, IDS[:3]))


def test_experts_that_move_end_a_recording(tmp_path: Path, card: FakeDevice) -> None:
    with load(write_model(tmp_path / "m.gguf", "qwen3moe")) as llm:
        store = llm.store
        assert isinstance(store, DeviceStore) and store.whole
        want, counts = llm.logits(IDS[:6], 1), list(store._counts)
        first = graphs(llm)[256]
        store.resettle([max(1, count // 2) for count in counts])
        assert not store.whole
        assert np.array_equal(llm.logits(IDS[:6], 1), want) and not replay_of(llm)._steps
        assert first.runs == 4
        store.resettle(counts)
        assert store.whole
        assert np.array_equal(llm.logits(IDS[:6], 1), want) and graphs(llm)[256] is not first


def test_whoever_listens_hears_every_step(tmp_path: Path, card: FakeDevice) -> None:
    heard: list[int] = []
    with load(write_model(tmp_path / "m.gguf", "qwen3moe")) as llm:
        want = llm.logits(IDS[:6], 1)
        llm.dispatch.observers.append(lambda layer, routing: heard.append(layer))
        assert np.array_equal(llm.logits(IDS[:6], 1), want)
        assert len(heard) == 6 * len(llm.layout.layers) and graphs(llm)[256].runs == 4


def test_a_card_that_records_nothing_says_so_and_answers(
    tmp_path: Path, card: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def record(work: Any) -> Any:
        asked.append(work)
        raise DeviceError("cuda:0 launches a step kernel by kernel: operation not permitted when stream is capturing")

    monkeypatch.setattr(card, "record", record)
    with load(write_model(tmp_path / "m.gguf", "qwen3moe")) as llm:
        got = llm.logits(IDS[:6], 1)
        assert len(asked) == 1 and sum("kernel by kernel" in notice for notice in llm.notices) == 1
        assert np.array_equal(got, plain(llm, IDS[:6]))


def test_the_fake_card_refuses_to_record_what_waits(card: FakeDevice) -> None:
    x = card.send(torch.ones(3))
    with pytest.raises(DeviceError, match="capturing"):
        card.record(lambda: x * float(x.sum()))
    y, graph = card.record(lambda: (x + 1).view(3, 1))
    x.fill_(5.0)
    assert y.inner.tolist() == [[2.0]] * 3  # type: ignore[attr-defined]
    graph.run()
    assert y.inner.tolist() == [[6.0]] * 3  # type: ignore[attr-defined]
