"""Low-precision twins on a device: in slots of their own there, on the fake device."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gmoe
from gmoe.experts.device_store import DeviceStore
from gmoe.passes.twin import twin
from tests import fake_device
from tests.factory import Shape, write_model
from tests.fake_device import FakeDevice
from tests.test_device_offload import check

IDS = [list(range(3, 14)), [7], [250, 9, 30], [7]]
SHAPE = Shape(embd=64, ff_exp=64, expert=16, used=4)


@pytest.fixture(scope="module", params=["qwen3moe", "gpt-oss"])
def model(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    path = write_model(folder / "m.gguf", request.param, quant="F16", shape=SHAPE)
    twin(path, folder / "q4.gguf", "Q4_0")
    twin(path, folder / "same.gguf", "F16")
    return path


def load(path: Path, **options: Any) -> gmoe.LLM:
    return gmoe.LLM.load(path, gmoe.RuntimeOptions(**{"context": 64, "max_sequences": 1, "device": "cuda"} | options))


def part(path: Path, share: float) -> str:
    """Memory on the device for a part of the experts, twins among them."""
    with load(path, device="cpu") as llm:
        return str(llm.budget.fixed + int(share * llm.budget.experts))


def run(path: Path, **options: Any) -> tuple[list[np.ndarray], dict[str, Any]]:
    with load(path, **options) as llm:
        logits = [llm.logits(ids) for ids in IDS]
        for store in (llm.store, llm.store.twin):
            if isinstance(store, DeviceStore) and not store.whole:
                check(store)
        return logits, llm.stats


@pytest.mark.parametrize(("share", "twins"), [(0.3, 0.4), (0.6, 0.5), (0.6, 0.1)])
def test_a_twin_of_the_same_precision_changes_no_bit(model: Path, card: FakeDevice, share: float, twins: float) -> None:
    want, _ = run(model)
    given = {"gpu_memory": part(model, share), "twin": model.with_name("same.gguf")}
    for miss, knobs in (
        ("twin", {"share": 1}),
        ("twin", {"share": 1, "behind": 1}),
        ("hobbit", {"t1": 0.3, "t2": 1.0}),
    ):
        got, stats = run(model, miss=miss, policy=knobs | {"twin_share": twins}, **given)
        assert stats["actions"]["twin"]["count"] > 0 and stats["twin"]["bytes_loaded"] > 0
        assert all(np.array_equal(a, b) for a, b in zip(got, want, strict=True)), (miss, knobs)


def test_neutral_is_bit_equal_and_a_choice_is_counted(model: Path, card: FakeDevice) -> None:
    want, _ = run(model)
    given = {"gpu_memory": part(model, 0.6), "twin": model.with_name("q4.gguf")}
    for miss, neutral, bold in (("twin", {"share": 0}, {}), ("hobbit", {"t1": 1.0}, {"t1": 0.2, "t2": 0.7})):
        got, stats = run(model, miss=miss, policy=neutral, **given)
        assert all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))
        assert stats["actions"]["load"]["count"] > 0 == stats["actions"]["twin"]["count"]
        got, stats = run(model, miss=miss, policy=bold, **given)
        assert not all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))
        done = {how for how, n in stats["actions"].items() if n["count"] and n["mass"] > 0}
        assert done >= ({"twin"} if miss == "twin" else {"load", "twin", "skip"})


def test_a_twin_is_nearer_than_nothing(model: Path, card: FakeDevice) -> None:
    want, errors = run(model)[0][0], []
    for options in ({"miss": "twin", "twin": model.with_name("q4.gguf")}, {"miss": "skip", "policy": {"drop": 1024}}):
        got = run(model, gpu_memory=part(model, 0.6), **options)[0][0]
        errors.append(float(np.sqrt(np.mean((got - want) ** 2)) / want.std()))
    assert 0 < errors[0] < errors[1]


def test_what_is_said_of_it(model: Path, card: FakeDevice) -> None:
    twins = model.with_name("q4.gguf")
    with load(model, miss="twin", twin=twins, gpu_memory=part(model, 0.6), policy={"twin_share": 0.2}) as llm:
        count, all_of_them = llm.store.twin.slots, 16 * len(llm.layout.layers)
        assert f"{count} of {all_of_them} twins have 20% of the experts' memory on fake:0" in llm.notices
        assert 0 < count <= all_of_them and not llm.store.whole
        assert card.taken == llm.store.nbytes + llm.store.twin.nbytes
    with load(model, miss="twin", twin=twins) as llm:
        assert llm.store.whole and llm.store.twin is None, "all experts are there: nobody needs twins"


def test_twins_make_room_as_well(model: Path, card: FakeDevice) -> None:
    greedy = gmoe.SamplingParams(max_tokens=12, temperature=0)
    given = {"miss": "twin", "twin": model.with_name("same.gguf"), "policy": {"twin_share": 0.4}}
    with load(model) as llm:
        want = [event.token_id for event in llm.run(IDS[0], greedy, ignore_end=True)]
    with load(model, gpu_memory=part(model, 0.6), **given) as llm:
        before, got = (llm.store.slots, llm.store.twin.slots), []
        for n, event in enumerate(llm.run(IDS[0], greedy, ignore_end=True)):
            got.append(event.token_id)
            if n in (3, 6):
                fake_device.refused.append(40)
        assert got == want
        assert llm.store.slots < before[0] and llm.store.twin.slots < before[1]


def test_what_does_not_fit_or_belong_is_refused(model: Path, tmp_path: Path, card: FakeDevice) -> None:
    with pytest.raises(
        ValueError, match="the twin needs at least .* on the device, its share is .*: a larger twin_share would do"
    ):
        load(
            model,
            miss="twin",
            twin=model.with_name("q4.gguf"),
            gpu_memory=part(model, 0.1),
            policy={"twin_share": 0.01},
        )
    with pytest.raises(ValueError, match="miss='twin' needs a low-precision twin of the model"):
        load(model, miss="twin")
    other = write_model(tmp_path / "other.gguf", "qwen3moe", quant="F16", shape=SHAPE, seed=5)
    with pytest.raises(ValueError, match="the twin was made of m.gguf, not of"):
        load(other, miss="twin", twin=model.with_name("q4.gguf"))
