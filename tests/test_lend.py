"""Lent memory: no two living tensors share a byte, what has died is used again, a prompt takes what it must."""

import random
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from gmoe.kernels.lend import LEAST, ROWS, Lender, Memory, lender

from gmoe.engine import replay
from gmoe.llm import LLM
from gmoe.options import RuntimeOptions
from tests.factory import write_model

CPU = torch.device("cpu")


def span(x: torch.Tensor) -> tuple[int, int]:
    return x.data_ptr(), x.data_ptr() + x.untyped_storage().nbytes()


def test_living_tensors_are_apart() -> None:
    choose, memory = random.Random(5), Memory(1 << 14)
    alive: list[torch.Tensor] = []
    for n in range(2000):
        if alive and choose.random() < 0.5:
            dead = alive.pop(choose.randrange(len(alive)))
            assert (dead == dead.flatten()[0]).all()  # nobody else wrote there
            continue
        shape = choose.choice([(3,), (5, 7), (2, 3, 4), (600,), (5000,), (0, 3), (1,)])
        x = memory.lend(torch.empty(shape, dtype=choose.choice([torch.float32, torch.int32, torch.uint8])))
        assert x.shape == shape and x.data_ptr() % 64 == 0
        x.fill_(n % 100)
        alive += [x] if x.numel() else []
    places = sorted(map(span, alive))
    assert len(places) > 5 and all(a[1] <= b[0] for a, b in zip(places, places[1:], strict=False))


def test_what_has_died_is_used_again() -> None:
    memory = Memory(1 << 20)
    first, second = memory.lend(torch.empty(1000)), memory.lend(torch.empty(3000))
    at, view = first.data_ptr(), second[10:]
    used = memory.used
    del first, second
    again = memory.lend(torch.empty(500))
    assert again.data_ptr() == at and memory.used == used == 4032 + 12032
    assert memory.lend(torch.empty(3000)).data_ptr() > view.data_ptr()  # a view holds its memory


def test_a_tensor_outlives_its_lender() -> None:
    with Lender() as lending:
        x = torch.empty(LEAST // 4)
        small, large = torch.empty(8), x.new_empty(2, LEAST)
        x.fill_(1.0), large.fill_(2.0), small.fill_(3.0)
    assert lending.memory.used == LEAST + 8 * LEAST
    del lending
    assert x.sum() == LEAST // 4 and large.mean() == 2.0
    assert isinstance(lender(ROWS, CPU), Lender)
    assert isinstance(lender(ROWS - 1, CPU), nullcontext) and isinstance(
        lender(ROWS, torch.device("meta")), nullcontext
    )


# Numbers a row. qwen3moe: the residual, its norm, queries, keys and values (256), the experts' sum where none of them
# was (64), the router's logits and choice (14).
@pytest.mark.parametrize(("name", "most"), [("qwen3moe", 334), ("qwen2moe", 397), ("deepseek2", 640)])
def test_a_prompt_takes_no_more_than_it_must(
    name: str, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lenders: list[Lender] = []

    def listening(rows: int, device: torch.device) -> Lender:
        lenders.append(Lender(least=0))
        return lenders[-1]

    monkeypatch.setattr(replay, "lender", listening)
    rows = 128
    with LLM.load(write_model(tmp_path / "m.gguf", name), RuntimeOptions(context=256, threads=2)) as llm:
        llm.seconds([n % 250 + 3 for n in range(rows)], 0, False)
    assert len(lenders) == 1
    assert most // 2 < lenders[0].memory.used / (4 * rows) <= most
