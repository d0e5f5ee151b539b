"""Offloading changes no bit: every architecture, capacity, eviction, prefetcher and working set, reads in any order.

Here every pair of these choices meets; `python -m tests.test_offload_is_invisible --seconds 300 --seed 1` runs as much
of the whole product, in a random order.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gmoe
from gmoe.experts import cache as assembly
from gmoe.experts import policy
from gmoe.experts.budget import Budget, budget_of
from gmoe.experts.memory import Limit
from gmoe.experts.transfer import TransferError
from tests.factory import ARCHITECTURES, write_model
from tests.pairs import pairwise
from tests.scripted_transfer import ScriptedTransfer

PROMPTS = [list(range(3, 14)), [7], [250, 9, 30], [7]]
CHOICES: dict[str, list[Any]] = {
    "architecture": [name for name, row in ARCHITECTURES.items() if row.shape.expert],
    "capacity": ["one", "two", "half", "all but one"],
    "evict": ["auto", *(name for name in policy.names("evict") if name != "belady")],
    "prefetch": ["auto", *policy.names("prefetch")],
    "working_set": ["auto", *policy.names("working_set")],
    "reader": ["direct", "mapped", "scripted"],
}
APART = {  # that see a number where a layer is, and of an architecture nothing else
    ("architecture", "evict"): CHOICES["evict"],
    ("architecture", "working_set"): CHOICES["working_set"],
    ("architecture", "prefetch"): [name for name in CHOICES["prefetch"] if name not in ("expert_map", "next_gate")],
    ("architecture", "capacity"): ["two"],
}
ROWS = pairwise(CHOICES, apart=APART)


class Models:
    """A tiny file of each architecture, and what it says when all of it is in memory."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.known: dict[str, tuple[Path, list[np.ndarray], Budget]] = {}

    def __getitem__(self, architecture: str) -> tuple[Path, list[np.ndarray], Budget]:
        if architecture not in self.known:
            path = write_model(self.folder / f"{architecture}.gguf", architecture)
            with gmoe.LLM.load(path, gmoe.RuntimeOptions(context=64, max_sequences=1)) as llm:
                assert llm.store.whole
                self.known[architecture] = path, [llm.logits(ids) for ids in PROMPTS], llm.budget
        return self.known[architecture]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("invisible"))


def memory(budget: Budget, capacity: str) -> int:
    """A host_memory that gives every group so many slots."""
    slots = 0
    for group in budget.groups:
        n = {"one": 1, "two": 2, "half": group.experts // 2, "all but one": group.experts - 1}[capacity]
        slots += n * group.slot_bytes
    return budget.fixed + slots


def run(models: Models, row: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    path, want, budget = models[row["architecture"]]
    readers: list[ScriptedTransfer] = []
    if row["reader"] == "scripted":

        def scripted(paths: list[Path], *how: Any) -> ScriptedTransfer:
            readers.append(ScriptedTransfer([np.fromfile(p, dtype=np.uint8) for p in paths], seed=len(path.name)))
            return readers[0]

        monkeypatch.setattr(assembly, "open_transfer", scripted)
    names = {kind: row[kind] for kind in ("evict", "prefetch", "working_set")}
    names["reader"] = "auto" if row["reader"] == "scripted" else row["reader"]
    options = gmoe.RuntimeOptions(
        context=64, max_sequences=1, host_memory=str(memory(budget, row["capacity"])), **names
    )
    with gmoe.LLM.load(path, options) as llm:
        if row["capacity"] != "all but one":
            assert not llm.store.whole, "slots are wider than experts, so that this budget must not hold all"
        for ids, logits in zip(PROMPTS, want, strict=True):
            llm.dispatch.begin()
            assert np.array_equal(llm.logits(ids), logits), row
        stats = llm.stats["host"]
        assert llm.store.whole or stats["bytes_loaded"] > 0
    assert all(reader.closed for reader in readers)


@pytest.mark.parametrize("n", range(len(ROWS)), ids=lambda n: "-".join(map(str, ROWS[n].values())))
def test_no_bit_changes(models: Models, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    run(models, ROWS[n], monkeypatch)


def test_every_pair_is_there() -> None:
    names = list(CHOICES)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            met, due = {(row[a], row[b]) for row in ROWS}, set(product(CHOICES[a], CHOICES[b]))
            assert met >= {(x, y) for x, y in due if y not in APART.get((a, b), ())}


def test_the_check_can_fail(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transfer that says "done" before the bytes are there is found out."""
    path, want, budget = models["qwen3moe"]

    class Hasty(ScriptedTransfer):
        def deliver(self, ticket):
            super().deliver(ticket)
            extent, into = self.last
            into[extent.reads[0].at + extent.starts[0]] ^= 0x55

        def submit(self, id, slot, extent, into, urgent):
            self.last = extent, into
            return super().submit(id, slot, extent, into, urgent)

    monkeypatch.setattr(
        assembly, "open_transfer", lambda paths, *how: Hasty([np.fromfile(p, dtype=np.uint8) for p in paths])
    )
    with gmoe.LLM.load(path, gmoe.RuntimeOptions(context=64, host_memory=str(memory(budget, "half")))) as llm:
        assert not np.array_equal(llm.logits(PROMPTS[0]), want[0])


def test_a_failed_read_is_an_error_of_its_request_alone(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    path, want, budget = models["qwen3moe"]
    reader = ScriptedTransfer([np.fromfile(path, dtype=np.uint8)])
    monkeypatch.setattr(assembly, "open_transfer", lambda paths, *how: reader)
    with gmoe.LLM.load(path, gmoe.RuntimeOptions(context=64, host_memory=str(memory(budget, "half")))) as llm:
        reader.errors = 0.5
        failures = 0
        for _ in range(20):
            try:
                assert np.array_equal(llm.logits(PROMPTS[0]), want[0])
            except TransferError as error:
                failures += 1
                assert str(error) == "the disk is on fire"
        assert failures
        reader.errors = 0.0
        assert np.array_equal(llm.logits(PROMPTS[0]), want[0])


@pytest.mark.parametrize(
    ("architecture", "chunk"), [(name, 16) for name in CHOICES["architecture"]] + [("qwen3moe", 32)]
)
def test_smaller_chunks_that_take_the_place_of_experts(
    models: Models, architecture: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = models[architecture][0]
    ids = [n * 7 % 250 for n in range(60)]
    with gmoe.LLM.load(path, gmoe.RuntimeOptions(context=64, max_sequences=1)) as llm:
        want, states = llm.logits(ids), llm._state_bytes()
        cache = max(64 * 1024, 4 * llm.model.kv_bytes_per_block(32, "f16"))

    def little(*given: Any) -> Budget:
        budget = budget_of(*given)
        slots = sum(group.experts // 2 * group.slot_bytes for group in budget.groups)
        budget.free = Limit(budget.fixed + budget.reserve + slots + cache + states, "a test")
        budget.activations = lambda rows: rows * slots // 2 // chunk
        return budget

    monkeypatch.setattr("gmoe.llm.budget_of", little)
    monkeypatch.setattr("gmoe.experts.budget.DECODE_ROWS", 0)
    with gmoe.LLM.load(path, gmoe.RuntimeOptions(context=64, max_sequences=1)) as llm:
        assert not llm.store.whole and llm._engine.scheduler.chunk == chunk
        used, lend = [], llm.store.lend

        def spy(nbytes: int) -> None:
            lend(nbytes)
            used.append(sum(pool.capacity for pool in llm.store._pools))

        monkeypatch.setattr(llm.store, "lend", spy)
        assert np.array_equal(llm.logits(ids), want)
        assert np.array_equal(llm.logits(ids[:34], step=1), want[:34])  # two blocks of the cache
        assert min(used) < max(used) <= llm.store.slots


def _sampled(seed: int) -> Iterator[dict[str, Any]]:
    """The whole product in a random order, which a seed tells."""
    values = list(CHOICES.values())
    count = math.prod(len(names) for names in values)
    order = np.random.default_rng(seed).permutation(count)
    for n in order.tolist():
        row: dict[str, Any] = {}
        for name, names in CHOICES.items():
            n, at = divmod(n, len(names))
            row[name] = names[at]
        yield row


def main(arguments: list[str] | None = None) -> None:
    """Run the product in a random order, as far as the time goes; another seed, or `--skip`, goes on elsewhere."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip", type=int, default=0, help="combinations of this order that have been run")
    parser.add_argument("--seconds", type=float, default=math.inf)
    given = parser.parse_args(arguments)
    end, rows = time.monotonic() + given.seconds, _sampled(given.seed)
    count = given.skip
    with tempfile.TemporaryDirectory() as folder:
        files = Models(Path(folder))
        for row in islice(rows, given.skip, None):
            if time.monotonic() > end:
                break
            with pytest.MonkeyPatch.context() as patch:
                run(files, row, patch)
            count += 1
            if count % 100 == 0:
                print(f"{count} combinations", flush=True)
    whole = math.prod(len(names) for names in CHOICES.values())
    print(f"seed {given.seed}: combinations {given.skip} to {count} of {whole}, not a bit different")


if __name__ == "__main__":
    main()
