"""The expert cache follows the memory that other programs leave on a device: the fake one, and a clock from outside."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gmoe
from gmoe.experts import device_budget, device_watch
from gmoe.experts.device import DeviceError
from gmoe.experts.device_watch import EVERY, PATIENCE
from gmoe.experts.transfer import TransferError
from tests import fake_device
from tests.factory import Shape, write_model
from tests.fake_device import FakeDevice
from tests.test_device_offload import check

IDS = [3, 4, 5, 6, 7, 8, 9]
RESERVE = 1 << 20


class Scene:
    """A model with all its experts on a card that others share."""

    def __init__(self, path: Path, card: FakeDevice, **options: Any):
        given = {"context": 64, "max_sequences": 1, "device": "cuda", "miss": "load"} | options
        self.card, self.llm = card, gmoe.LLM.load(path, gmoe.RuntimeOptions(**given))
        self.now = 0.0
        self.store, self.watch = self.llm.store, self.llm.cache.watch
        self.watch._clock, self.watch._next = lambda: self.now, 0.0
        self.slot = max(group.slot_bytes for group in self.store.groups)
        self.others = 0

    def leave(self, slots: float) -> None:
        """Others take or give back memory until so many slots could be had beside the watch's margin."""
        margin = self.watch.work + device_watch.RESERVE + self.store.given_back
        self.card.memory = self.card.taken + margin + int((slots - self.store.slots) * self.slot)

    def logits(self, wait: float = EVERY) -> np.ndarray:
        self.now += wait
        return self.llm.logits(IDS)

    @property
    def said(self) -> list[str]:
        return [notice for notice in self.llm.notices if "its expert cache went from" in notice]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = Shape(layer=3, expert=16, embd=256, ff_exp=256)
    return write_model(tmp_path_factory.mktemp("watch") / "m.gguf", "qwen3moe", shape=shape)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDevice]:
    made = FakeDevice()
    monkeypatch.setattr("gmoe.llm.open_device", lambda name: made if name.startswith("cuda") else None)
    for module in (device_budget, device_watch):
        monkeypatch.setattr(module, "RESERVE", RESERVE)
    yield made
    fake_device.refused.clear()


@pytest.fixture
def scene(model: Path, card: FakeDevice) -> Iterator[Scene]:
    made = Scene(model, card)
    with made.llm:
        yield made


def test_it_shrinks_before_an_allocation_fails_and_grows_back(scene: Scene) -> None:
    want, everything = scene.logits(), scene.store.slots
    assert scene.store.whole and everything == 48 and not scene.said
    scene.leave(20)
    assert np.array_equal(scene.logits(), want)
    assert 17 <= scene.store.slots <= 20 and not scene.store.whole and check(scene.store) <= scene.store.slots
    assert scene.card.free() >= scene.watch.work + RESERVE
    fewer = scene.store.slots
    assert scene.said == [f"other programs left 0 MiB on fake:0: its expert cache went from 48 to {fewer} experts"]
    scene.leave(48)
    for _ in range(PATIENCE - 1):
        assert np.array_equal(scene.logits(), want) and scene.store.slots == fewer
    assert np.array_equal(scene.logits(), want) and scene.store.whole and scene.store.slots == 48
    assert len(scene.said) == 1 and scene.said[0].startswith("there is room again: ")
    assert scene.card.taken == scene.store.nbytes, "what was given back is given back"


def test_in_the_middle_of_an_answer(scene: Scene) -> None:
    greedy = gmoe.SamplingParams(max_tokens=24, temperature=0)
    want = [event.token_id for event in scene.llm.run(IDS, greedy, ignore_end=True)]
    got, sizes = [], set()
    for n, event in enumerate(scene.llm.run(IDS, greedy, ignore_end=True)):
        got.append(event.token_id)
        scene.now += EVERY
        if n in (2, 9):
            scene.leave(16 if n == 2 else 48)
        sizes.add(scene.store.slots)
    assert got == want and len(sizes) > 1


def test_it_looks_at_most_once_in_a_while(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    free = scene.card.free
    monkeypatch.setattr(scene.card, "free", lambda: looks.append(1) or free())
    for _ in range(10):
        scene.logits(EVERY / 5)
    assert 2 <= len(looks) <= 3


def test_a_little_is_not_worth_it(scene: Scene) -> None:
    scene.logits()
    scene.leave(48 - RESERVE / 2 / scene.slot + 0.1)  # not half of the reserve is gone
    scene.logits()
    assert scene.store.slots == 48 and not scene.said
    scene.leave(24)
    scene.logits()
    fewer = scene.store.slots
    scene.leave(fewer + 2)  # less than an eighth more
    for _ in range(2 * PATIENCE):
        scene.logits()
    assert scene.store.slots == fewer
    for n in range(3 * PATIENCE):  # room that comes and goes
        scene.leave(48 if n % PATIENCE else fewer)
        scene.logits()
    assert scene.store.slots == fewer and len(scene.said) == 1


def test_one_expert_of_each_kind_stays(scene: Scene) -> None:
    want = scene.logits()
    scene.leave(-5)
    assert np.array_equal(scene.logits(), want)
    assert scene.store.slots == len(scene.store.groups)
    assert np.array_equal(scene.logits(), want), "and then nothing more can be done"


def test_what_passes_lacked_is_not_taken_again(scene: Scene) -> None:
    want = scene.logits()
    fake_device.refused.append(3)
    assert np.array_equal(scene.logits(), want)
    after = scene.store.slots
    assert after < 48 and scene.store.given_back > 0
    scene.card.memory = scene.card.taken + scene.watch.work + RESERVE + scene.store.given_back
    for _ in range(2 * PATIENCE):
        assert np.array_equal(scene.logits(), want)
    assert scene.store.slots == after


def test_memory_that_was_gone_for_good_and_comes_back(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    want, empty = scene.logits(), scene.card.empty

    def refuse(nbytes: int) -> torch.Tensor:
        raise torch.OutOfMemoryError("another program took it")

    monkeypatch.setattr(scene.card, "empty", refuse)
    scene.leave(10)
    with pytest.raises(DeviceError, match="^fake:0 ran out of memory while taking slots for the experts"):
        scene.logits()
    monkeypatch.setattr(scene.card, "empty", empty)
    scene.card.memory = 1 << 30
    for _ in range(PATIENCE - 1):
        with pytest.raises(DeviceError, match="has no place for experts any more"):
            scene.logits()
    assert np.array_equal(scene.logits(), want) and scene.store.whole


def test_copies_that_fail_while_it_grows(scene: Scene) -> None:
    want = scene.logits()
    scene.leave(20)
    scene.logits()
    scene.leave(48)
    for _ in range(PATIENCE - 1):
        scene.logits()
    scene.card.copy_errors = 1.0
    with pytest.raises(TransferError, match="an expert could not be copied to fake:0"):
        scene.logits()
    scene.card.copy_errors = 0.0
    assert scene.store.slots == 48 and np.array_equal(scene.logits(), want)
    check(scene.store)


def test_what_was_asked_for_stays(model: Path, card: FakeDevice) -> None:
    with gmoe.LLM.load(model, gmoe.RuntimeOptions(context=64, device="cuda", gpu_memory="100MiB")) as llm:
        assert not hasattr(llm.cache, "watch")


@pytest.mark.parametrize("evict", ["auto", "lru", "sieve"])
def test_policies_stay_the_same(model: Path, card: FakeDevice, evict: str) -> None:
    scene = Scene(model, card, evict=evict)
    with scene.llm:
        want, before = scene.logits(), [pool.evict for pool in scene.store._pools]
        for slots in (20, 48, 12, 30):
            scene.leave(slots)
            for _ in range(PATIENCE):
                assert np.array_equal(scene.logits(), want)
            assert abs(scene.store.slots - slots) <= 3
        assert [pool.evict for pool in scene.store._pools] == before
