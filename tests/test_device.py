"""The device's tier in detail, on the fake device: misses, leaks, waits, Triton's own kernels, all that goes wrong."""

import os
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


import gmoe
from gmoe.experts import device, device_cache, device_dispatch
from gmoe.experts.device import DeviceError, open_device
from gmoe.experts.device_cost import DeviceCosts
from gmoe.experts.device_store import DeviceStore
from gmoe.experts.evict.lru import Policy as Lru
from gmoe.experts.expert_id import ExpertId, Tier
from gmoe.experts.slots import extents, groups
from gmoe.experts.store import ExpertStore
from gmoe.experts.transfer import TransferError
from gmoe.gguf.file import GGUFFile
from gmoe.gguf.layout import ExpertLayout
from tests import fake_device
from tests.factory import Shape, write_model
from tests.fake_device import FakeDevice
from tests.scripted_transfer import ScriptedTransfer
from tests.test_device_offload import check, memory

SHAPE = Shape(layer=3, expert=8, embd=96, ff_exp=96)
IDS = [3, 4, 5, 6, 7, 8, 9]
HANDED = 6  # tensors of a batch that a pass brings to the device, and its token rows, however many layers there are


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("device") / "m.gguf", "qwen3moe")


def load(path: Path, **options: Any) -> gmoe.LLM:
    given = {"context": 64, "max_sequences": 1, "device": "cuda", "miss": "load"}
    return gmoe.LLM.load(path, gmoe.RuntimeOptions(**given | options))


def half(path: Path) -> str:
    """Memory on the device for half of the experts."""
    with load(path, device="cpu") as llm:
        return memory(llm.budget, "half")


@pytest.mark.parametrize(("architecture", "quant"), [("qwen3moe", "Q4_0"), ("gpt-oss", "F32"), ("deepseek2", "F16")])
def test_triton_runs_the_whole_model(
    architecture: str, quant: str, tmp_path: Path, card: FakeDevice, triton: None
) -> None:
    path = write_model(tmp_path / "m.gguf", architecture, quant=quant)
    with load(path, device="cpu", activations="float") as llm:
        want = llm.logits(IDS)
    with load(path, activations="float") as llm:
        fake_device.syncs.clear()
        got = llm.logits(IDS)
        assert fake_device.syncs == ["copy to the host"]
        fake_device.handed.clear()
        llm.logits(IDS[:2])
        assert len(fake_device.handed) == HANDED
        assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()
    with load(path, activations="float", gpu_memory=half(path)) as llm:
        assert not llm.store.whole and np.array_equal(llm.logits(IDS), got)


def test_policies_hear_what_the_router_on_the_device_thought_of_all_experts(model: Path, card: FakeDevice) -> None:
    with load(model, gpu_memory=half(model), evict="lru", prefetch="none") as llm:
        want = llm.logits(IDS)
    with load(model, gpu_memory=half(model), evict="score_window", prefetch="expert_map") as llm:
        assert np.array_equal(llm.logits(IDS), want)
        for pool in llm.store._pools:
            assert (pool.evict.sum > 0).all()  # each would be a nought that no token chose
        assert llm.dispatch.prefetch.current.all()


@pytest.mark.parametrize("miss", ["cpu", "balance"])
@pytest.mark.parametrize("host", ["map", "slots"])
def test_misses_are_computed_where_they_lie(
    model: Path, miss: str, host: str, card: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_cache, "measure", lambda *_: DeviceCosts(1.0, 1.0, 0.0, 5.0))
    with load(model, activations="float") as llm:
        want, budget = llm.logits(IDS), llm.budget
    sizes = {"gpu_memory": memory(budget, "two")}
    if host == "slots":
        sizes["host_memory"] = str(budget.fixed + budget.experts * 3 // 4 + 4096)
    with load(model, activations="float", miss=miss, **sizes) as llm:
        for _ in range(4):
            assert np.abs(llm.logits(IDS) - want).max() <= 1e-4 * np.abs(want).max()
        actions = llm.stats["actions"]
        assert actions["cpu"]["count"] > 0 and actions["cpu"]["mass"] > 0
        assert (actions["load"]["count"] > 0) == (miss == "balance" or host == "slots")


def test_costs_are_measured_and_learnt(model: Path, card: FakeDevice) -> None:
    with load(model, miss="balance", gpu_memory=half(model)) as llm:
        costs = llm.dispatch.miss.costs
        assert costs.copy > 0 and costs.one > 0 and costs.load(Tier.HOST) == costs.copy
        assert llm.dispatch.computed == costs.computed and llm.store.copied == costs.copied
    costs = DeviceCosts(0.1, 1.0, 0.5, disk=2.0)
    assert costs.load(Tier.DISK) == 2.1 and costs.cpu(3) == 2.0
    costs.computed(3, 4.0)
    assert costs.cpu(3) == pytest.approx(2.2)


def test_the_host_waits_once_a_layer_where_something_may_be_missing(model: Path, card: FakeDevice) -> None:
    card.hurry = 1.0  # copies are fast: no buffer is waited for
    with load(model, gpu_memory=half(model)) as llm:
        llm.logits(IDS)
        fake_device.syncs.clear()
        llm.logits([7])
        layers = len(llm.layout.layers)
        assert fake_device.syncs == ["event"] * layers + ["copy to the host"]


@pytest.mark.parametrize(("slots", "below"), [(1, "map"), (2, "slots"), (7, "map"), (7, "slots"), (20, "slots")])
def test_a_thousand_random_steps_leak_nothing(tmp_path: Path, slots: int, below: str) -> None:
    card = FakeDevice(seed=slots)
    torch.set_num_threads(1)  # small copies do not gain by threads, and lose much on a busy machine
    with GGUFFile.open(write_model(tmp_path / "m.gguf", "qwen3moe", shape=SHAPE)) as file:
        layout = ExpertLayout(file, SHAPE.layer, SHAPE.expert)
        host, where = ExpertStore(layout), extents(layout)
        if below == "slots":
            parts = [np.fromfile(path, dtype=np.uint8) for path in file.parts]
            host.offload(groups(layout, where), [3], where, Lru, ScriptedTransfer(parts, seed=slots, errors=0.02))
        store = DeviceStore(host, card)  # type: ignore[arg-type]
        store.settle_on([slots], Lru)
        card.copy_errors = 0.02
        choose, failures = random.Random(slots), 0
        for step in range(1000):
            layer = choose.randrange(SHAPE.layer)
            if choose.random() < 0.05:
                store.keep([ExpertId(0, expert) for expert in choose.sample(range(SHAPE.expert), 3)])
            here, absent = store.lookup(layer, choose.sample(range(SHAPE.expert), choose.randint(1, 4)))
            pinned, flying = set(here), []
            if choose.random() < 0.7:
                told = [ExpertId(choose.randrange(SHAPE.layer), choose.randrange(SHAPE.expert))]
                choose.choice([store.prefetch, store.foretell])(told, pinned)
            try:
                while absent or flying:
                    while absent and (ticket := store.fetch(absent[0], pinned)):
                        pinned.add(absent.pop(0))
                        flying.append(ticket)
                    assert all(store.resident(id) for id in here if id in pinned)
                    store.read(layer, [id.expert for id in here if id in pinned])
                    if not flying:
                        pinned.difference_update(here)
                        continue
                    arrived = store.wait(flying)
                    flying = [ticket for ticket in flying if ticket not in arrived]
                    assert all(store.resident(ticket.id) for ticket in arrived)
                    pinned.difference_update(ticket.id for ticket in arrived)
            except TransferError:
                failures += 1
            if step % 50 == 0:
                assert check(store) <= slots
        store.settle()
        assert not store._upload._jobs and not store._upload._queue and not store._flying
        assert failures > 0 and check(store) == len(store._pools[0]) <= slots
        pool = store._pools[0]
        numbers = [*pool._free, *pool._slots.values()]
        assert sorted(numbers) == list(range(len(numbers))) and len(numbers) <= slots
        store.close()


def test_a_failed_copy_is_an_error_of_its_request_alone(model: Path, card: FakeDevice) -> None:
    with load(model, gpu_memory=half(model)) as llm:
        want = llm.logits(IDS)
        card.copy_errors = 0.4
        failures = 0
        for _ in range(20):
            try:
                assert np.array_equal(llm.logits(IDS), want)
            except TransferError as error:
                failures += 1
                assert str(error) == ("an expert could not be copied to fake:0: CUDA error: the card fell off the bus")
        assert failures
        card.copy_errors = 0.0
        assert np.array_equal(llm.logits(IDS), want)


def test_memory_that_ends_while_loading(model: Path, card: FakeDevice) -> None:
    fake_device.refused.append(6)
    with pytest.raises(
        DeviceError, match="^fake:0 ran out of memory while loading the weights that are no experts: .* MiB are free$"
    ):
        load(model)
    card.memory = 1 << 20
    with pytest.raises(
        ValueError, match=r"m\.gguf needs \d+ MiB on the device for its weights, the KV cache and an expert"
    ):
        load(model)


def test_fewer_slots_where_there_is_less_memory_than_it_said(model: Path, card: FakeDevice) -> None:
    taken, card.empty = card.empty, lambda nbytes: refuse(nbytes)  # type: ignore[method-assign]

    def refuse(nbytes: int) -> torch.Tensor:
        if nbytes > 150_000:
            raise torch.OutOfMemoryError("fragmented")
        return taken(nbytes)

    with load(model) as llm:
        assert llm.logits(IDS).shape[0] == len(IDS)
        assert 1 <= llm.store.slots < 16 and not llm.store.whole
        assert f"{llm.store.slots} of 16 experts fit on fake:0, in 0 MiB" in llm.notices


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("architecture", ["qwen3moe", "qwen35moe"])
def test_memory_that_ends_in_the_middle_of_an_answer(
    architecture: str, tmp_path: Path, card: FakeDevice, whole: bool
) -> None:
    model = write_model(tmp_path / "m.gguf", architecture)
    greedy = gmoe.SamplingParams(max_tokens=30, temperature=0)
    with load(model) as llm:
        want = [event.token_id for event in llm.run(IDS, greedy, ignore_end=True)]
        asked = llm.stats["gpu"]["hits"]
    with load(model, gpu_memory="auto" if whole else half(model)) as llm:
        got, before = [], llm.store.slots
        for n, event in enumerate(llm.run(IDS, greedy, ignore_end=True)):
            got.append(event.token_id)
            if n in (3, 6):
                fake_device.refused.append(48)  # amid the blocks
        assert got == want
        assert llm.store.slots < before and not llm.store.whole
        said = [notice for notice in llm.notices if "ran out of memory: its expert cache went from" in notice]
        assert len(said) == 2 and said[0].startswith(
            f"fake:0 ran out of memory: its expert cache went from {before} to"
        )
        stats = llm.stats  # the passes that ended are not counted
        assert asked == (stats["gpu"]["hits"] + stats["gpu"]["misses"] if whole else stats["routed"]["count"])
        check(llm.store)


def test_when_nothing_is_left_to_make_room_of(model: Path, card: FakeDevice) -> None:
    with load(model, device="cpu") as llm:
        one = memory(llm.budget, "one")
    with load(model, gpu_memory=one) as llm:
        fake_device.refused.append(10)
        with pytest.raises(DeviceError, match="ran out of memory while answering, with no expert left to make room of"):
            llm.logits(IDS)
        llm.logits(IDS)


def test_memory_that_is_gone_for_good(model: Path, card: FakeDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(nbytes: int) -> torch.Tensor:
        raise torch.OutOfMemoryError("another program took it")

    with load(model) as llm:
        monkeypatch.setattr(card, "empty", refuse)
        fake_device.refused.append(10)
        with pytest.raises(
            DeviceError, match="^fake:0 ran out of memory while taking slots for the experts: .* are free$"
        ):
            llm.logits(IDS)
        with pytest.raises(DeviceError, match="^fake:0 ran out of memory while answering before"):
            llm.logits(IDS)


def cuda(**facts: Any) -> SimpleNamespace:
    """What torch.cuda says of a machine."""
    given = {"count": 1, "capability": (9, 0), "trouble": None} | facts

    def init() -> None:
        if given["trouble"]:
            raise RuntimeError(given["trouble"])

    return SimpleNamespace(
        init=init,
        device_count=lambda: given["count"],
        get_device_capability=lambda n: given["capability"],
        get_device_name=lambda n: "NVIDIA GeForce GTX 1080",
        set_device=lambda n: None,
    )


OLD_DRIVER = """The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by
downloading and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx"""


@pytest.mark.parametrize(
    ("name", "built", "machine", "said"),
    [
        ("cuda", None, cuda(), "device='cuda' needs a PyTorch that was built with CUDA, and this one was not"),
        (
            "cuda",
            "12.8",
            cuda(trouble=OLD_DRIVER),
            "device='cuda' cannot be used: The NVIDIA driver on your system is too old (found version 11040)",
        ),
        ("cuda", "12.8", cuda(count=0), "device='cuda' cannot be used: this machine has no CUDA card"),
        ("cuda:2", "12.8", cuda(count=2), "device='cuda:2' does not exist: the CUDA cards here are 0 to 1"),
        (
            "cuda",
            "12.8",
            cuda(capability=(6, 1)),
            "NVIDIA GeForce GTX 1080 is too old: it has compute capability 6.1, the kernels need 8.0",
        ),
    ],
)
def test_a_card_that_cannot_be_used(name: str, built: str | None, machine: Any, said: str) -> None:
    with pytest.raises(DeviceError) as error:
        open_device(name, machine, built)
    assert str(error.value) == said


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "find_spec", lambda name: None)
    with pytest.raises(DeviceError, match="^device='cuda' needs the package triton, which is not installed$"):
        open_device("cuda", cuda(), "12.8")


def test_the_cpu_is_no_device() -> None:
    assert open_device("cpu") is None and open_device("auto") is None


def test_an_expert_that_nobody_asks_for_is_no_hit(model: Path, card: FakeDevice) -> None:
    with load(model, route="odp", policy={"beta": 1.0}) as llm:
        llm.logits(IDS)
        stats = llm.stats
    assert stats["gpu"]["hits"] + stats["rerouted"]["count"] == stats["routed"]["count"] > stats["gpu"]["hits"] > 0


@pytest.mark.parametrize("lossy", [{"route": "cache_prior"}, {"route": "resident_only"}, {"miss": "skip"}])
def test_what_is_launched_early_does_not_outlive_another_choice(
    model: Path, tmp_path: Path, lossy: dict[str, str], card: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The resident experts of the router's choice run before the policies have spoken."""
    size = half(model)
    first, second = (tmp_path / name for name in ("first.gguf", "second.gguf"))  # neither knows the other's trace
    first.write_bytes(model.read_bytes())
    second.write_bytes(model.read_bytes())
    card.hurry = 1.0
    with load(first, gpu_memory=size, prefetch="none", evict="lru", **lossy) as llm:
        got = [llm.logits(IDS) for _ in range(4)]
        stats = llm.stats
    assert stats["rerouted"]["count"] or stats["actions"]["skip"]["count"]
    known = device_dispatch._Begun.known

    def nothing(self: Any, ids: np.ndarray) -> None:
        known(self, ids)
        self.done = np.zeros_like(self.done)

    monkeypatch.setattr(device_dispatch._Begun, "known", nothing)
    with load(second, gpu_memory=size, prefetch="none", evict="lru", **lossy) as llm:
        assert all(np.array_equal(llm.logits(IDS), logits) for logits in got)


@pytest.mark.parametrize("kv_type", ["f32", "bf16", "q8_0"])
def test_every_number_format_of_the_cache(model: Path, kv_type: str, card: FakeDevice) -> None:
    with load(model, device="cpu", activations="float", kv_type=kv_type) as llm:
        want = llm.logits(IDS, step=1)
    with load(model, activations="float", kv_type=kv_type) as llm:
        assert np.abs(llm.logits(IDS, step=1) - want).max() <= 1e-3 * np.abs(want).max()


@pytest.mark.parametrize("whole", [True, False])
def test_answers_run_together(model: Path, card: FakeDevice, whole: bool) -> None:
    greedy = gmoe.SamplingParams(max_tokens=8, temperature=0)
    prompts = [IDS, [7, 250], [11]]
    with load(model, max_sequences=3, gpu_memory="auto" if whole else half(model)) as llm:
        alone = [[event.token_id for event in llm.run(ids, greedy, ignore_end=True)] for ids in prompts]
        streams = [llm.run(ids, greedy, ignore_end=True) for ids in prompts]
        assert [[event.token_id for event in stream] for stream in streams] == alone
        assert llm.stats["gpu"]["bytes"] > llm.budget.fixed
