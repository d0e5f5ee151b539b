"""Replayed steps: the decoder's bits in every architecture, over other contexts, blocks, threads and observers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gmoe.kernels import ops
from gmoe.kernels.record import Recorder, record

from gmoe.engine.engine import Engine
from gmoe.engine.replay import Replay, _Step
from gmoe.engine.sampling import SamplingParams
from gmoe.engine.scheduler import Turn
from gmoe.engine.sequence import Sequence
from gmoe.llm import LLM
from gmoe.options import RuntimeOptions
from tests.factory import ARCHITECTURES, BY_TORCH, write_model

IDS = [(7 * n + n * n // 5) % 250 + 3 for n in range(300)]  # past the first reach of 256


def engine_of(model: Replay) -> Engine:
    return Engine(model, 512, 2, "f16")


def recorded(replay: Replay) -> set[int]:
    return {reach for (_, reach, _), step in replay._steps.items() if step is not None}


@pytest.fixture(scope="module", params=[name for name in ARCHITECTURES if name not in BY_TORCH])
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    path = write_model(tmp_path_factory.mktemp("models") / f"{request.param}.gguf", request.param)
    with LLM.load(path, RuntimeOptions(context=512, threads=2)) as llm:
        yield llm


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    path = write_model(tmp_path_factory.mktemp("models") / "qwen3moe.gguf", "qwen3moe")
    with LLM.load(path, RuntimeOptions(context=512, threads=2)) as llm:
        yield llm


def test_replayed_steps_give_the_decoders_bits(llm: LLM) -> None:
    replay = Replay(llm.model)
    before = llm.store.stats.hits
    got = engine_of(replay).logits(IDS[:24], 1)
    counted = llm.store.stats.hits - before
    want = Engine(llm.model, 512, 2, "f16").logits(IDS[:24], 1)
    assert np.array_equal(got, want) and want.std() > 0.1
    assert llm.store.stats.hits - before == 2 * counted
    assert recorded(replay) == {256}


def together(model: Any) -> np.ndarray:
    """Logits of two sequences whose tokens are computed in the same steps, one of them at other positions."""
    engine, rows = Engine(model, 512, 2, "f16"), []
    seqs = [Sequence(IDS[:18], SamplingParams()), Sequence(IDS[30:41], SamplingParams())]
    for seq in seqs:
        count = len(seq.ids) - 8
        engine.scheduler.make_room(seq, count, keep=list(seqs))
        engine.runner.forward([Turn(seq, count)], [count - 1])
        seq.n_cached = count
        engine.scheduler.blocks.publish(seq)
    for _ in range(8):
        for seq in seqs:
            engine.scheduler.make_room(seq, seq.n_cached + 1, keep=list(seqs))
        rows.append(engine.runner.forward([Turn(seq, 1) for seq in seqs], [0, 1]).copy())
        for seq in seqs:
            seq.n_cached += 1
            engine.scheduler.blocks.publish(seq)
    return np.concatenate(rows)


def test_sequences_together_are_recorded_too(llm: LLM) -> None:
    replay = Replay(llm.model)
    assert np.array_equal(together(replay), together(llm.model))
    kept = [key[0] for key, step in replay._steps.items() if step is not None]
    assert kept == [2]


def test_torch_computes_nothing_of_a_pass(llm: LLM) -> None:
    """Its threads would spin for milliseconds where the kernels want to run: from 32768 numbers on they come."""
    llm.logits(IDS[:2])  # a model's first pass prepares what all have
    engine, seq = Engine(llm.model, 512, 2, "f16"), Sequence(IDS[:64], SamplingParams())
    for count in (63, 1):
        engine.scheduler.make_room(seq, seq.n_cached + count, keep=[])
        with Recorder() as recorder, torch.inference_mode():
            engine.runner.forward([Turn(seq, count)], range(count))
        seq.n_cached += count
        assert recorder.foreign <= {"numpy", "to"}, "which give what is there already"


@pytest.mark.parametrize("name", BY_TORCH)
def test_what_torch_computes_is_never_replayed(name: str, tmp_path: Path) -> None:
    with LLM.load(write_model(tmp_path / "m.gguf", name), RuntimeOptions(context=512, threads=2)) as llm:
        replay = Replay(llm.model)
        assert np.array_equal(engine_of(replay).logits(IDS[:24], 1), llm.logits(IDS[:24]))
        assert not any(replay._steps.values())


@pytest.mark.parametrize(("name", "most"), [("deepseek32", 256), ("glm-dsa+shared", 256), ("minimax-m3", 32)])
def test_it_is_where_no_index_can_come_to_choose(
    name: str, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_model(tmp_path / "m.gguf", name, metadata={"attention.indexer.top_k": most})
    with LLM.load(path, RuntimeOptions(context=512, threads=2)) as llm:
        replay, runs = Replay(llm.model), list[int]()
        engine = engine_of(replay)
        assert np.array_equal(engine.logits(IDS, 1), llm.logits(IDS))
        assert recorded(replay) == {256}
        run = _Step.run
        monkeypatch.setattr(_Step, "run", lambda step, batch: runs.append(1) or run(step, batch))
        assert np.array_equal(engine.logits(IDS[:20], 1), llm.logits(IDS[:20]))
        assert len(runs) == 20  # as before the long one


def test_a_longer_reach_is_recorded_anew(qwen: LLM) -> None:
    replay = Replay(qwen.model)
    got = engine_of(replay).logits(IDS, 1)
    assert np.array_equal(got, Engine(qwen.model, 512, 2, "f16").logits(IDS, 1))
    assert recorded(replay) == {256, 512}


def test_sequences_in_turn_each_keep_their_blocks(qwen: LLM) -> None:
    replayed, plain = engine_of(Replay(qwen.model)), Engine(qwen.model, 512, 2, "f16")
    for engine in (replayed, plain):
        seqs = [Sequence(IDS[:3], SamplingParams()), Sequence(IDS[5:9], SamplingParams())]
        rows = []
        for n in range(40):
            for seq in seqs:
                count = seq.pending
                engine.scheduler.make_room(seq, seq.n_cached + count, keep=list(seqs))
                rows.append(engine.runner.forward([Turn(seq, count)], [count - 1])[0].copy())
                seq.n_cached += count
                seq.ids.append(IDS[n])
        for seq in seqs:
            engine.scheduler.blocks.release(seq)
        engine_rows = np.stack(rows)
        if engine is replayed:
            kept = engine_rows
    assert np.array_equal(kept, engine_rows)


def test_whoever_listens_hears_every_step(qwen: LLM) -> None:
    replay, heard = Replay(qwen.model), list[int]()
    engine = engine_of(replay)
    engine.logits(IDS[:4], 1)
    listen = lambda layer, routing: heard.append(layer)  # noqa: E731
    qwen.dispatch.observers.append(listen)
    try:
        engine.logits(IDS[:4], 1)
    finally:
        qwen.dispatch.observers.remove(listen)
    assert len(heard) == 4 * len(qwen.layout.layers)


def test_other_threads_are_another_recording(qwen: LLM) -> None:
    replay = Replay(qwen.model)
    engine = engine_of(replay)
    before = torch.get_num_threads()
    try:
        rows = []
        for threads in (1, 2, 1):
            torch.set_num_threads(threads)
            rows.append(engine.logits(IDS[:5], 1))
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(rows[0], rows[1]) and np.array_equal(rows[0], rows[2])
    assert sorted(replay._steps) == [(1, 256, 1), (1, 256, 2)]


def test_what_torch_computes_is_no_tape() -> None:
    x, weight = torch.randn(1, 64), torch.randn(64)

    def norm() -> torch.Tensor:
        return ops.rms_norm(x, weight, None, 1e-6)

    y, tape = record(norm)
    assert tape is not None and len(tape) == 1
    x.copy_(torch.randn(1, 64))
    tape.run()
    assert torch.equal(y, norm())
    assert record(lambda: norm() + 1)[1] is None
    assert record(lambda: norm().add_(1))[1] is None
    assert record(lambda: norm()[:, : int(x[0, 0] > 0)])[1] is None
    assert record(lambda: norm().view(8, 8)[:, :4])[1] is not None


def test_a_recording_ends_with_an_error() -> None:
    x, weight = torch.randn(1, 64), torch.randn(64)
    _, tape = record(lambda: ops.rms_norm(x, weight, None, 1e-6))

    def fails() -> torch.Tensor:
        ops.rms_norm(x, weight, None, 1e-6)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        record(fails)
    ops.rms_norm(x, weight, None, 1e-6)  # on no tape any more
    assert tape is not None and len(tape) == 1


def test_a_loaded_model_replays(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", "qwen3moe")
    with LLM.load(path, RuntimeOptions(context=64)) as llm:
        replay = llm._engine.runner.model
        assert isinstance(replay, Replay)
        llm.logits(IDS[:3], 1)
        (step,) = replay._steps.values()
        assert step is not None
        assert step.begin is not None and step.end is not None, "recorded as well"
