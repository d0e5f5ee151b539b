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
from gmoe.engine.scheduler import Turn
from gmoe.engine.sequence import Sequence
from gmoe.experts.device import DeviceError
from gmoe.experts.device_store import DeviceStore
from tests.factory import ON_DEVICES, Shape, write_model
from tests.fake_device import FakeDevice, FakeGraph

IDS = [(7 * n + n * n // 5) % 250 + 3 for n in range(40)]


def load(path: Path, **options: Any) -> gmoe.LLM:
    given = {"context": 512, "max_sequences": 1, "device": "cuda", "miss": "load"}
    return gmoe.LLM.load(path, gmoe.RuntimeOptions(**given | options))


def replay_of(llm: gmoe.LLM) -> Replay:
    model = llm._engine.runner.model
    assert isinstance(model, Replay)
    return model


def graphs(llm: gmoe.LLM, sequences: int = 1) -> dict[int, FakeGraph]:
    """By reach, of so many sequences."""
    found = {}
    for (rows, reach, _), step in replay_of(llm)._steps.items():
        if step is not None and rows == sequences:
            assert isinstance(step.tape, FakeGraph)
            found[reach] = step.tape
    return found


def plain(llm: gmoe.LLM, ids: list[int]) -> np.ndarray:
    """Logits of single steps, none of them recorded."""
    replay = replay_of(llm)
    before, replay._most = replay._most, 0
    try:
        return llm.logits(ids, 1)
    finally:
        replay._most = before


@pytest.mark.parametrize("architecture", ON_DEVICES)
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


def together(llm: gmoe.LLM, prompts: list[list[int]], tokens: int) -> np.ndarray:
    """Logits of steps of several sequences, [tokens, S, n_vocab], behind their prompts; the first rows are given."""
    engine, taken = llm._engine, []
    seqs = [Sequence(list(ids), gmoe.SamplingParams()) for ids in prompts]
    for seq in seqs:
        engine.scheduler.make_room(seq, len(seq.ids) + tokens, keep=[])
        engine.runner.forward([Turn(seq, len(seq.ids))], [0])
        seq.n_cached = len(seq.ids)
    for n in range(tokens):
        for seq in seqs:
            seq.ids.append(IDS[n])
        taken.append(engine.runner.forward([Turn(seq, 1) for seq in seqs], range(len(seqs))))
        for seq in seqs:
            seq.n_cached += 1
    for seq in seqs:
        engine.scheduler.blocks.release(seq)
    return np.array(taken)


@pytest.mark.parametrize("architecture", ["qwen3moe", "gpt-oss", "deepseek2", "llama4"])
def test_steps_of_several_sequences_give_the_bits_of_their_kernels(
    architecture: str, tmp_path: Path, card: FakeDevice
) -> None:
    prompts = [IDS[:9], IDS[3:4], IDS[5:38], IDS[1:3], IDS[2:7]]
    with load(write_model(tmp_path / "m.gguf", architecture), max_sequences=5) as llm:
        for some in (prompts[:2], prompts, prompts[2:4]):
            hits = llm.store.stats.hits
            got = llm._loop.call(lambda some=some: together(llm, some, 6))
            counted = llm.store.stats.hits - hits
            replay = replay_of(llm)
            before, replay._most = replay._most, 0
            want = llm._loop.call(lambda some=some: together(llm, some, 6))
            replay._most = before
            assert np.array_equal(got, want) and got.std() > 0.05
            assert llm.store.stats.hits - hits == 2 * counted
        assert graphs(llm, 5)[256].runs == 4 and graphs(llm, 2)[256].runs == 4 + 6


def test_a_longer_reach_of_one_is_all_of_theirs(
    tmp_path: Path, card: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gmoe.engine.replay.reach", lambda n: 32 if n <= 32 else 64)
    with load(write_model(tmp_path / "m.gguf", "qwen3moe"), max_sequences=2) as llm:
        got = llm._loop.call(lambda: together(llm, [IDS[:2], IDS[:29]], 8))
        assert {reach: graph.runs for reach, graph in graphs(llm, 2).items()} == {32: 1, 64: 3}
        replay_of(llm)._most = 0
        assert np.array_equal(got, llm._loop.call(lambda: together(llm, [IDS[:2], IDS[:29]], 8)))


def test_only_so_many_steps_are_kept(tmp_path: Path, card: FakeDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ones that were wanted last; those that come again are recorded again."""
    monkeypatch.setattr("gmoe.engine.replay.reach", lambda n: 32 if n <= 32 else 64)
    monkeypatch.setattr("gmoe.engine.replay.KEPT", 4)
    most, recorded, record = 0, list[int](), card.record

    def counted(work: Any) -> Any:
        nonlocal most
        made = record(work)
        most = max(most, 1 + sum(step is not None for step in replay_of(llm)._steps.values()))
        recorded.append(len(made[0]))
        return made

    monkeypatch.setattr(card, "record", counted)
    with load(write_model(tmp_path / "m.gguf", "qwen3moe", shape=Shape(layer=1)), max_sequences=3) as llm:
        some = [[IDS[:2]] * n for n in (1, 2, 3, 1)] + [[IDS[:33], *[IDS[:2]] * n] for n in (0, 1, 2)]
        got = [llm._loop.call(lambda n=n: together(llm, n, 4)) for n in (*some, some[1])]
        assert most == 4 == len(replay_of(llm)._steps) and recorded == [1, 2, 3, 1, 2, 3, 2]
        assert list(graphs(llm, 2)) == [64, 32] and not graphs(llm, 3).keys() - {64} and list(graphs(llm)) == [64]
        replay_of(llm)._most = 0
        want = [llm._loop.call(lambda n=n: together(llm, n, 4)) for n in (*some, some[1])]
    assert all(np.array_equal(*both) for both in zip(got, want, strict=True))


def test_answers_together_are_what_they_are_alone(tmp_path: Path, card: FakeDevice) -> None:
    greedy = gmoe.SamplingParams(max_tokens=12, temperature=0)
    prompts = [IDS[:4], IDS[7:8], IDS[2:20]]
    with load(write_model(tmp_path / "m.gguf", "qwen3moe"), max_sequences=3) as llm:
        alone = [[event.token_id for event in llm.run(ids, greedy, ignore_end=True)] for ids in prompts]
        streams = [llm.run(ids, greedy, ignore_end=True) for ids in prompts]
        assert [[event.token_id for event in stream] for stream in streams] == alone
        assert sum(graph.runs for n in (2, 3) for graph in graphs(llm, n).values()) > 0


def test_a_card_that_records_only_one_sequence(
    tmp_path: Path, card: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = card.record

    def only_one(work: Any) -> Any:
        y, graph = record(work)
        if len(y) > 1:
            raise DeviceError("cuda:0 launches a step kernel by kernel: operation not permitted")
        return y, graph

    monkeypatch.setattr(card, "record", only_one)
    with load(write_model(tmp_path / "m.gguf", "qwen3moe"), max_sequences=2) as llm:
        got = llm._loop.call(lambda: together(llm, [IDS[:2], IDS[:5]], 4))
        assert replay_of(llm)._most == 1 and not graphs(llm, 2)
        llm.logits(IDS[:5], 1)
        assert graphs(llm)[256].runs == 3 and sum("kernel by kernel" in notice for notice in llm.notices) == 1
        replay_of(llm)._most = 0
        assert np.array_equal(got, llm._loop.call(lambda: together(llm, [IDS[:2], IDS[:5]], 4)))


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
