"""Copying experts to a card is never slower than the CPU alone: on the fake one, by a clock from outside."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gmoe
from gmoe.experts import device_cache, device_dispatch, device_worth, dispatch, measure, upload
from gmoe.experts.device_cost import DeviceCosts
from gmoe.experts.device_cost import measure as measure_costs
from gmoe.experts.device_worth import COMPUTE, COPY, NEVER, Way, part, weigh
from tests.factory import Shape, write_model
from tests.fake_device import FakeDevice, FakeEvent
from tests.test_device_offload import host_memory, memory

SHAPE = Shape(layer=2, expert=16, used=4, embd=64, ff_exp=64)
ONE, MORE = 1e-3, 1e-4  # seconds of the CPU for an expert's row, and for each row more
GREEDY = gmoe.SamplingParams(max_tokens=6, temperature=0)
LINKS = ((0.1, "one"), (1.3, "half"), (5.0, "half"), (5.0, "all but one"), (30.0, "all but one"))  # copies, in ONEs
STAGED = 0.05  # of the CPU's time for one: what the host takes to hand an expert to a copy


class Clock:
    """Pretended seconds: copies take some behind one another, and so do the CPU's kernels."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def compute(self, ids: torch.Tensor) -> None:
        pairs = ids[ids >= 0]
        self.now += len(pairs.unique()) * (ONE - MORE) + len(pairs) * MORE


class SlowCard(FakeDevice):
    """Copies take as long as the CPU takes for `times` experts, one behind the other."""

    def __init__(self, clock: Clock, times: float):
        super().__init__(hurry=0.0)
        self.clock, self.times, self.link = clock, times, 0.0
        self.shuffles = False

    def upload(self, into: torch.Tensor, source: torch.Tensor, after: FakeEvent | None) -> FakeEvent:
        event = super().upload(into, source, after)
        self.clock.now += STAGED * ONE
        event.seconds = self.times * ONE
        self.link = through = max(self.link, self.clock.now) + event.seconds
        work = event.work
        assert work is not None

        def arrive() -> None:
            self.clock.now = max(self.clock.now, through)
            work()

        def query() -> bool:
            if event.work is not None and self.clock.now >= through:
                event._finish()
            return event.work is None

        event.work, event.query = arrive, query  # type: ignore[method-assign]
        return event


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("worth") / "m.gguf", "qwen3moe", shape=SHAPE)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    made = Clock()

    def timed(kernel: Any) -> Any:
        def run(x: torch.Tensor, ids: torch.Tensor, *more: Any) -> Any:
            made.compute(ids)
            return kernel(x, ids, *more)

        return run

    for module, name in ((dispatch, "expert_mlp"), (measure, "expert_rows"), (device_dispatch, "expert_rows")):
        monkeypatch.setattr(module, name, timed(getattr(module, name)))
    monkeypatch.setattr(device_cache, "measure", partial(measure_costs, clock=made))
    for timed_class in (device_dispatch.DeviceDispatch, upload.Upload):
        monkeypatch.setattr(timed_class, "clock", made)
    monkeypatch.setattr(device_worth, "COUNTED", 200)
    yield made


@pytest.fixture
def load(model: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The model on a card whose copies take so long, with so many experts there; nothing is known of earlier runs."""
    with gmoe.LLM.load(model, gmoe.RuntimeOptions(device="cpu")) as llm:
        budget = llm.budget

    def made(times: float, capacity: str, **options: Any) -> gmoe.LLM:
        card = SlowCard(clock, times)
        monkeypatch.setattr("gmoe.llm.open_device", lambda name: card if name.startswith("cuda") else None)
        model.with_suffix(".trace").unlink(missing_ok=True)
        given = {"context": 128, "max_sequences": 2, "device": "cuda", "prefetch": "none"}
        given["gpu_memory"] = memory(budget, capacity)
        return gmoe.LLM.load(model, gmoe.RuntimeOptions(**given | options))

    return made


def prompt(n: int, tokens: int) -> list[int]:
    return [(37 * n + 11 * t + t * t) % 250 + 3 for t in range(tokens)]


def answer(llm: gmoe.LLM, ids: list[int]) -> list[int | None]:
    return [event.token_id for event in llm.run(ids, GREEDY, ignore_end=True)]


def seconds(llm: gmoe.LLM, clock: Clock, turns: int = 4) -> list[list[float]]:
    """Of prompts of all lengths and their answers, each by itself, so many times."""
    taken: list[list[float]] = []
    for turn in range(turns):
        taken.append([])
        for n, tokens in enumerate((1, 3, 24, 8)):
            began = clock.now
            answer(llm, prompt(4 * turn + n, tokens))
            taken[-1].append(clock.now - began)
    return taken


def test_no_answer_is_slower_than_by_the_cpu_alone(load: Any, clock: Clock) -> None:
    """Nor is it the CPU everywhere, once slots are filled; and asked for by name, copying is slower on a slow link."""
    with load(1e6, "half") as llm:
        alone = seconds(llm, clock)
        assert llm.cache.worth.way == COMPUTE and llm.stats["gpu"]["misses"] == 0
    found, slower = {}, {}
    for times, capacity in LINKS:
        with load(times, capacity) as llm:
            taken = seconds(llm, clock)
            slower[times, capacity] = max((np.array(taken) / alone).flat)
            found[times, capacity] = sum(taken[-1]) / sum(alone[-1])
    assert max(slower.values()) <= 1.05, slower
    assert found[0.1, "one"] < 0.2 and found[1.3, "half"] < 0.9 and found[5.0, "all but one"] < 0.6, found
    with load(3.0, "one", miss="load") as llm:
        assert not hasattr(llm.cache, "worth") and not any("is off" in notice for notice in llm.notices)
        assert sum(seconds(llm, clock, 1)[0]) > 2 * sum(alone[0])


def test_costs_are_measured_by_the_clock(load: Any) -> None:
    with load(3.0, "half") as llm:
        costs = llm.cache.worth.costs
        assert (costs.one, costs.more) == pytest.approx((ONE, MORE))
        assert costs.copy == pytest.approx(3 * ONE + STAGED * ONE / 4), "the host hands over while the link works"
        assert costs.byte * llm.store.groups[0].slot_bytes == pytest.approx(3 * ONE)


def test_one_notice_names_the_numbers(load: Any) -> None:
    with load(30.0, "half") as llm:
        said = [notice for notice in llm.notices if "experts are computed on the CPU" in notice]
        assert said == [
            "the expert cache on fake:0 is off, experts are computed on the CPU: copying an expert takes 30 ms, "
            "the CPU 1 ms for a token, and 50% of those wanted would be there; --miss balance does both"
        ]
    with load(0.1, "half") as llm:
        assert len(llm.notices) == 1 and llm.notices[0].startswith("16 of 32 experts fit on fake:0")
    with load(1.3, "half") as llm:
        assert llm.notices[1:] == [
            "experts are computed on the CPU until enough of them are on fake:0: copying an expert takes 1.3 ms, "
            "the CPU 1 ms for a token, and 50% of those wanted would be there"
        ]


def test_answers_on_the_cpu_are_the_cpus_own(load: Any, model: Path) -> None:
    """With all experts there the answer of the card is the same but for rounding."""
    ids = prompt(1, 11)
    with load(30.0, "one", activations="float") as llm:
        got, actions = llm.logits(ids), llm.stats["actions"]
        assert llm.cache.worth.way == COMPUTE and actions["cpu"]["count"] > 0 == actions["load"]["count"]
        assert actions["cpu"]["mass"] == pytest.approx(llm.stats["routed"]["mass"])
        assert sum(llm.stats["gpu"][name] for name in ("hits", "misses")) == 0 < llm.stats["host"]["hits"]
    with gmoe.LLM.load(model, gmoe.RuntimeOptions(device="cpu", activations="float")) as llm:
        want = llm.logits(ids)
    assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()


def test_an_answer_keeps_the_way_in_which_it_began(load: Any) -> None:
    long = gmoe.SamplingParams(max_tokens=24, temperature=0)
    ids, others = prompt(1, 11), prompt(2, 7)
    with load(30.0, "half") as llm:
        worth = llm.cache.worth
        computed = answer(llm, others), [event.token_id for event in llm.run(ids, long, ignore_end=True)]
        worth.costs = DeviceCosts(1e-6, 1.0, 1.0)
        copied = answer(llm, others)
        assert worth.way == COPY and worth._said.startswith("experts are copied to fake:0")
        worth.costs = DeviceCosts(1.0, 1e-6, 1e-6)
        stream, got = llm.run(ids, long, ignore_end=True), list[int | None]()
        for event in stream:
            got.append(event.token_id)
            if len(got) == 4:
                worth.costs = DeviceCosts(1e-6, 1.0, 1.0)
                beside = llm.run(others, GREEDY, ignore_end=True)
                rest = [event.token_id for event in beside]
        assert worth.way == COPY and set(worth._named.values()) == {COPY, COMPUTE}
        assert (rest, got) == (copied, computed[1])
        assert sum("fake:0" in notice for notice in llm.notices) == 2, "one on its size, and the last word"


def test_another_ways_part_of_a_conversation_is_not_taken_over(load: Any) -> None:
    ids = prompt(1, 70)
    with load(30.0, "half") as llm:
        worth = llm.cache.worth
        for costs, copied in ((worth.costs, 0), (DeviceCosts(1e-6, 1.0, 1.0), 0), (worth.costs, 64)):
            worth.costs = costs
            stream = llm.run(ids, GREEDY, ignore_end=True)
            events = [event.token_id for event in stream]
            assert stream.n_reused == copied and len(events) == 6
        stream = llm.run(ids, GREEDY, ignore_end=True)
        assert [event.token_id for event in stream] == events and stream.n_reused == 64


def test_experts_that_all_fit_again_wait_for_the_next_answer(load: Any) -> None:
    ids, long = prompt(1, 11), gmoe.SamplingParams(max_tokens=12, temperature=0)
    with load(30.0, "half") as llm:
        want = [event.token_id for event in llm.run(ids, long, ignore_end=True)]
        got, cpu = list[int | None](), 0
        for event in llm.run(ids, long, ignore_end=True):
            got.append(event.token_id)
            if len(got) == 4:
                llm._loop.call(lambda: llm.store.resettle([group.experts for group in llm.store.groups]))
                assert llm.store.whole
            cpu = llm.stats["actions"]["cpu"]["count"]
        assert got == want
        answer(llm, ids)
        assert llm.stats["actions"]["cpu"]["count"] == cpu and llm.cache.worth.way == COPY


def test_what_runs_teaches_it(load: Any) -> None:
    """By the share of the experts that fit copying would lose; the tokens of this text want the same few again."""
    ids = prompt(3, 4)
    with load(1.5, "half") as llm:
        worth = llm.cache.worth
        assert worth.hoped.tokens == 0.5 and worth.warm.filling and not worth.way.tokens
    with load(2.4, "half") as llm:
        worth = llm.cache.worth
        assert worth.hoped.tokens == 0.5 and not worth.way.tokens
        for _ in range(12):
            answer(llm, ids)
        assert worth.way.tokens and worth.hoped.tokens < 0.5 and worth.rates.tokens < 0.2
        hits = llm.stats["gpu"]["hits"]
        answer(llm, ids)
        assert llm.stats["gpu"]["hits"] > hits


def test_slots_are_filled_out_of_a_host_that_is_too_small_as_well(
    load: Any, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once there, experts are copied for answers too; none is lost on the way."""
    with gmoe.LLM.load(model, gmoe.RuntimeOptions(device="cpu")) as llm:
        size = host_memory(llm.budget, "half")
    tier = device_cache.DeviceCache._host_tier
    monkeypatch.setattr(device_cache.DeviceCache, "_host_tier", lambda *given: 0.0 * tier(*given))  # a disk as memory
    with load(1.3, "all but one", host_memory=size) as llm:
        worth, store = llm.cache.worth, llm.store
        assert not store.below.whole
        for n in range(12):
            assert len(answer(llm, prompt(n, 3))) == 6
        assert worth.way.tokens and llm.stats["actions"]["cpu"]["count"] > 0 and llm.stats["gpu"]["hits"] > 0
        llm._loop.call(store.settle)
        assert not store.flying and not store.below._flying


def test_misses_that_are_counted_end_it(load: Any) -> None:
    with load(0.7, "half") as llm:
        worth = llm.cache.worth
        assert worth.way.tokens
        worth.costs.copy = 1.5 * ONE
        worth._counted[0][:] = 400, 399
        answer(llm, prompt(0, 1))
        assert worth.way.tokens and worth.rates.tokens > 0.8
        answer(llm, prompt(1, 1))
        assert not worth.way.tokens


def test_a_link_that_others_slow_down_is_noticed(load: Any, clock: Clock) -> None:
    """The answer that runs then pays for it, those that begin later do not; and a link that recovers is used again."""
    prompts = [prompt(n, (3, 8, 1)[n % 3]) for n in range(24)]

    def answers(llm: gmoe.LLM, some: list[list[int]]) -> list[float]:
        taken = []
        for ids in some:
            began = clock.now
            answer(llm, ids)
            taken.append(clock.now - began)
        return taken

    with load(1e6, "half") as llm:
        alone = answers(llm, prompts)
    with load(0.4, "half") as llm:
        worth, card = llm.cache.worth, llm.device
        assert worth.way == COPY
        quick = answers(llm, prompts[:3])
        card.times *= 10
        slow = answers(llm, prompts[3:9])
        assert not worth.way.tokens and worth.costs.copy > 2 * ONE
        card.times /= 10
        again = answers(llm, prompts[9:])
        assert worth.way.tokens and worth.costs.copy < ONE
    assert max(np.array(quick) / alone[:3]) < 0.6 and max(np.array(again[-3:]) / alone[-3:]) < 0.6
    assert max(np.array(slow[1:] + again) / alone[4:]) <= 1.05 and slow[0] < 10 * alone[3]
    assert sum(slow) < 2 * sum(alone[3:9])


def test_what_is_observed_is_believed_little_by_little() -> None:
    costs = DeviceCosts(2.0, 1.0, 0.5, byte=0.1)
    costs.copied(10, 1.0)
    assert (costs.copy, costs.byte) == (2.0, 0.1)
    costs.copied(10, 100.0)
    assert costs.copy == pytest.approx(2.6) and costs.byte == pytest.approx(0.13), "four times as much at most"
    costs.copied(10, 0.65, weight=0.5)
    assert costs.copy == pytest.approx(1.95)
    costs.served(2, 6, 8.0)  # as expected: 4.0
    assert (costs.one, costs.more) == pytest.approx((1.1, 0.55))
    costs = DeviceCosts(2.0, 1.0, 0.5)
    costs.copied(10, 100.0)
    assert costs.copy == 2.0, "nothing is known of the link"


def test_the_part_that_copying_takes() -> None:
    costs = DeviceCosts(2.0, 1.0, 0.5)
    assert part(costs, 0.5, 1, 64, 8) == pytest.approx(1.0)
    assert part(costs, 1.0, 1, 64, 8) == pytest.approx(2.0)
    assert part(costs, 1.0, 64, 64, 8) == pytest.approx(2 / (1 + 7 * 0.5), rel=1e-3), "eight rows an expert"
    assert part(DeviceCosts(2.0, 1.0, 0.5, disk=3.0), 1.0, 1, 64, 8, away=0.5) == pytest.approx(3.5 / 2.5)


def test_a_small_difference_changes_nothing() -> None:
    assert weigh(lambda n: 0.9, COMPUTE) == COMPUTE and weigh(lambda n: 0.9, COPY) == COPY
    assert weigh(lambda n: 0.8, COMPUTE) == COPY and weigh(lambda n: 1.1, COPY) == COMPUTE
    falling = lambda n: 3.2 / n  # noqa: E731
    assert weigh(falling, COMPUTE) == Way(False, 4) == weigh(falling, COPY)
    assert weigh(lambda n: 4.5 / n, Way(False, 4)) == Way(False, 8) == weigh(lambda n: 4.5 / n, Way(False, 8))
    assert weigh(lambda n: 9.0 if n > 1 else 0.1, COMPUTE) == Way(True, NEVER)
