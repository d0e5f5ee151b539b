"""Company changes no bit: answers that come and go together have the logits that each has alone.

Here every pair of these choices meets; `python -m tests.test_company --seconds 300 --seed 1` draws others, and other
requests. Files may be named, else each architecture has a tiny one.
"""

import argparse
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gmoe
from gmoe.engine import waiting
from gmoe.engine.engine import BLOCK_SIZE, Engine
from gmoe.engine.replay import Replay
from gmoe.engine.sampling import SamplingParams
from gmoe.engine.sequence import Sequence
from gmoe.experts import policy
from tests.factory import ARCHITECTURES, write_model
from tests.pairs import pairwise

CONTEXT = 160
CHOICES: dict[str, list[Any]] = {
    "activations": ["q8", "float"],
    "kv_type": ["f16", "bf16", "f32", "q8_0"],
    "quant": ["F32", "Q8_0", "Q5_1"],
    "memory": ["whole", "one", "half"],
    "chunk": [1, 33, 512],
    "blocks": ["for one", "for two", "for all"],
    "sequences": [2, 5],
}
ROWS = pairwise(CHOICES)
LENGTHS = [1, 2, 17, 31, 32, 33, 64, 65, 100, 129]


def requests(draw: random.Random, n_vocab: int) -> list[Sequence]:
    """Prompts of all lengths, most of which begin alike."""
    shared = [draw.randrange(n_vocab) for _ in range(CONTEXT)]
    made = []
    for _ in range(draw.randint(3, 6)):
        length = draw.choice(LENGTHS)
        alike = draw.choice([0, length // 2, length - 1])
        ids = shared[:alike] + [draw.randrange(n_vocab) for _ in range(length - alike)]
        temperature, many = draw.choice([0.0, 0.8, 2.0]), draw.choice([1, 5, 40])
        params = SamplingParams(temperature=temperature, max_tokens=many, seed=draw.randrange(1000))
        made.append(Sequence(ids, params, reuse_prefix=draw.random() < 0.8))
    return made


def run(path: Path, row: dict[str, Any], draw: random.Random) -> int:
    """How many rows of logits were compared; an AssertionError where one differs."""
    common: dict[str, Any] = {"context": CONTEXT, "max_sequences": 1} | {
        name: row[name] for name in ("activations", "kv_type")
    }
    with gmoe.LLM.load(path, gmoe.RuntimeOptions(**common)) as whole:
        given, groups = dict(common), whole.budget.groups
        if row["memory"] != "whole" and groups:
            slots = [1 if row["memory"] == "one" else group.experts // 2 for group in groups]
            room = sum(n * group.slot_bytes for n, group in zip(slots, groups, strict=True))
            given |= {"host_memory": str(whole.budget.fixed + room)}
            given |= {kind: draw.choice(_lossless(kind)) for kind in ("evict", "prefetch", "working_set")}
        with gmoe.LLM.load(path, gmoe.RuntimeOptions(**given)) as llm:
            assert row["memory"] != "one" or not groups or not llm.store.whole
            of_each = -(-CONTEXT // BLOCK_SIZE)
            n_blocks = of_each * {"for one": 1, "for two": 2, "for all": row["sequences"]}[row["blocks"]]
            admission = draw.choice(waiting.names())
            engine = Engine(
                Replay(llm.model), CONTEXT, row["sequences"], row["kv_type"], row["chunk"], n_blocks, admission
            )
            engine.runner.observers.append(llm.steps)
            seen = _answers(engine, requests(draw, llm.model.n_vocab), draw, llm.dispatch.begin)
            assert engine.scheduler.blocks.n_free == n_blocks
        for seq, places in seen.items():
            want = whole.logits(seq.ids)
            for place, logits in places.items():
                assert np.array_equal(logits, want[place]), (path.name, given, row, place)
    return sum(map(len, seen.values()))


def _answers(engine: Engine, todo: list[Sequence], draw: random.Random, begin: Any) -> dict[Sequence, Any]:
    """The logits that each request chose from, by place; they come now and then, and one may go before its end."""
    seen: dict[Sequence, dict[int, np.ndarray]] = {}
    choose, here = engine._choose, list[Sequence]()

    def look(seq: Sequence, logits: np.ndarray) -> Any:
        seen.setdefault(seq, {})[len(seq.ids) - 1] = logits.copy()
        return choose(seq, logits)

    engine._choose = look  # type: ignore[method-assign]
    while todo or any(seq.finish_reason is None for seq in here):
        if todo and (draw.random() < 0.3 or all(seq.finish_reason for seq in here)):
            begin()
            here.append(todo.pop())
            engine.add(here[-1])
        if draw.random() < 0.03:
            engine.abort(draw.choice(here))
        engine.step()
    return seen


def _lossless(kind: str) -> list[str]:
    return ["auto", *(name for name in policy.names(kind) if name != "belady")]


@pytest.mark.parametrize("n", range(len(ROWS)), ids=lambda n: "-".join(map(str, ROWS[n].values())))
def test_no_bit_changes(tmp_path: Path, n: int) -> None:
    architectures = list(ARCHITECTURES)
    path = write_model(tmp_path / "m.gguf", architectures[n % len(architectures)], quant=ROWS[n]["quant"])
    assert run(path, ROWS[n], random.Random(n)) > 0


def main(arguments: list[str] | None = None) -> None:
    """Run rows of choices drawn by a seed, as far as the time goes."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=60)
    given = parser.parse_args(arguments)
    draw, end = random.Random(given.seed), time.monotonic() + given.seconds
    compared = list[int]()
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < end:
            row = {name: draw.choice(values) for name, values in CHOICES.items()}
            name = draw.choice(list(ARCHITECTURES))
            path = Path(folder) / f"{name}-{row['quant']}.gguf"
            if given.files:
                path = draw.choice(given.files)
            elif not path.exists():
                write_model(path, name, quant=row["quant"])
            compared.append(run(path, row, draw))
    print(f"seed {given.seed}: {len(compared)} times together, {sum(compared)} rows of logits, not a bit different")


if __name__ == "__main__":
    main()
