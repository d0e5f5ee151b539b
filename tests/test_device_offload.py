"""A whole model on the fake device: the CPU's logits, no bit of which depends on what is where when; no waiting."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gmoe
from gmoe.experts import device_cache, policy
from gmoe.experts.budget import Budget
from gmoe.experts.device_slots import device_groups
from tests import fake_device
from tests.factory import ARCHITECTURES, ON_DEVICES, write_model
from tests.fake_device import FakeDevice
from tests.pairs import pairwise
from tests.scripted_transfer import ScriptedTransfer

PROMPTS = [list(range(3, 14)), [7], [250, 9, 30], [7]]
MOE = [name for name in ON_DEVICES if ARCHITECTURES[name].shape.expert]
CHOICES: dict[str, list[Any]] = {
    "architecture": MOE,
    "capacity": ["one", "two", "half", "all but one"],
    "evict": ["auto", *(name for name in policy.names("evict") if name != "belady")],
    "prefetch": ["auto", *policy.names("prefetch")],
    "working_set": ["auto", *policy.names("working_set")],
    "host": ["map", "one slot", "half"],
    "hurry": [0.0, 0.3, 1.0],
}
APART = {  # that see a number where a layer is, and of an architecture nothing else
    ("architecture", "evict"): CHOICES["evict"],
    ("architecture", "working_set"): CHOICES["working_set"],
    ("architecture", "prefetch"): [name for name in CHOICES["prefetch"] if name not in ("expert_map", "next_gate")],
    ("architecture", "capacity"): ["two"],
}
ROWS = pairwise(CHOICES, apart=APART)


class Models:
    """A tiny file of each architecture, and what it says with all of it on the device."""

    def __init__(self, folder: Path, use: Any):
        self.folder, self.use = folder, use
        self.known: dict[str, tuple[Path, list[np.ndarray], Budget]] = {}

    def __getitem__(self, architecture: str) -> tuple[Path, list[np.ndarray], Budget]:
        if architecture not in self.known:
            path = write_model(self.folder / f"{architecture}.gguf", architecture)
            self.use(FakeDevice())
            with gmoe.LLM.load(path, gmoe.RuntimeOptions(context=64, max_sequences=1, device="cuda")) as llm:
                assert llm.store.whole
                self.known[architecture] = path, [llm.logits(ids) for ids in PROMPTS], llm.budget
        return self.known[architecture]


@pytest.fixture(scope="module")
def use() -> Iterator[Any]:
    """Makes a fake device the card of this machine."""
    with pytest.MonkeyPatch.context() as patch:

        def put(device: FakeDevice) -> FakeDevice:
            patch.setattr("gmoe.llm.open_device", lambda name: device if name.startswith("cuda") else None)
            return device

        yield put


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, use: Any) -> Models:
    return Models(tmp_path_factory.mktemp("device"), use)


def slots(experts: int, capacity: str) -> int:
    return {"one": 1, "one slot": 1, "two": 2, "half": experts // 2, "all but one": experts - 1}[capacity]


def memory(budget: Budget, capacity: str) -> str:
    """A gpu_memory that gives every group so many slots."""
    groups, _ = device_groups(budget.layout)
    return str(budget.fixed + sum(slots(group.experts, capacity) * group.slot_bytes for group in groups))


def host_memory(budget: Budget, capacity: str) -> str:
    if capacity == "map":
        return "auto"
    return str(budget.fixed + sum(slots(group.experts, capacity) * group.slot_bytes for group in budget.groups))


@pytest.mark.parametrize("architecture", ON_DEVICES)
def test_the_device_says_what_the_cpu_says(architecture: str, tmp_path: Path, use: Any) -> None:
    path = write_model(tmp_path / "m.gguf", architecture)
    # A cache of F16 would round some keys the other way where torch's last bits differ from CPU to CPU.
    options: dict[str, Any] = {"context": 64, "max_sequences": 1, "activations": "float", "kv_type": "f32"}
    with gmoe.LLM.load(path, gmoe.RuntimeOptions(**options)) as llm:
        want = [llm.logits(ids) for ids in PROMPTS]
    use(FakeDevice())
    with gmoe.LLM.load(path, gmoe.RuntimeOptions(device="cuda", **options)) as llm:
        for ids, logits in zip(PROMPTS, want, strict=True):
            fake_device.syncs.clear()
            got = llm.logits(ids)
            assert fake_device.syncs == ["copy to the host"], "the logits alone come back where nothing is missing"
            assert np.abs(got - logits).max() <= 1e-4 * np.abs(logits).max()
        assert all(notice.endswith("in 0 MiB") for notice in llm.notices)


@pytest.mark.parametrize("n", range(len(ROWS)), ids=lambda n: "-".join(map(str, ROWS[n].values())))
def test_no_bit_changes(models: Models, n: int, use: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    row = ROWS[n]
    path, want, budget = models[row["architecture"]]
    device = use(FakeDevice(seed=n, hurry=row["hurry"]))
    readers: list[ScriptedTransfer] = []

    def scripted(paths: list[Path], *how: Any) -> ScriptedTransfer:
        readers.append(ScriptedTransfer([np.fromfile(p, dtype=np.uint8) for p in paths], seed=n))
        return readers[0]

    monkeypatch.setattr(device_cache, "open_transfer", scripted)
    names = {kind: row[kind] for kind in ("evict", "prefetch", "working_set")}
    sizes = {
        "gpu_memory": memory(budget, row["capacity"]),
        "host_memory": host_memory(budget, row["host"]),
        "miss": "load",
    }
    with gmoe.LLM.load(path, gmoe.RuntimeOptions(context=64, max_sequences=1, device="cuda", **sizes, **names)) as llm:
        assert not llm.store.whole and bool(readers) == (row["host"] != "map")
        for ids, logits in zip(PROMPTS, want, strict=True):
            llm.dispatch.begin()
            assert np.array_equal(llm.logits(ids), logits), row
        stats = llm.stats
        assert stats["gpu"]["bytes_loaded"] > 0 and stats["gpu"]["hits"] + stats["gpu"]["misses"] > 0
        assert (stats["host"]["bytes_loaded"] > 0) == bool(readers)
        llm.store.settle()
        check(llm.store)
    assert not [event for event in device.flying if event.upload] and all(reader.closed for reader in readers)


def check(store: Any) -> int:
    """The tables of host and device agree, and every slot holds its expert's bytes; returns how many are here."""
    assert np.array_equal(store.table_of_slots.inner.numpy(), store.slot_of)
    found = 0
    for layer, stacks in store.layout.layers.items():
        bank, taken = store.bank(layer), store.slot_of[layer][store.slot_of[layer] >= 0]
        assert len(set(taken.tolist())) == len(taken)
        for expert in np.flatnonzero(store.here(layer)):
            for matrix, stack in zip((bank.gate, bank.up, bank.down), stacks, strict=True):
                if matrix is not None:
                    size = stack.matrices[expert].nbytes
                    data = bank.data.inner[store.slot_of[layer, expert], matrix.offset : matrix.offset + size]
                    assert np.array_equal(data.numpy(), np.asarray(stack.matrices[expert]).reshape(-1))
            found += 1
    return found
