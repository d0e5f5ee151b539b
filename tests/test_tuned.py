"""Choices of launches: what is kept and what is believed; every candidate computes the same. The clock is given."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from gmoe.kernels.triton import tuned

import gmoe
from tests.factory import write_model
from tests.fake_device import FakeDevice
from tools import gpu_kernels, gpu_tune
from tools.gpu_end_to_end import Clock


class Pair(NamedTuple):
    n: int
    num_stages: int


class Other(NamedTuple):
    rows: int


SHIPPED, FASTER = Pair(8, 1), Pair(16, 3)
KEY = tuned.key("matmul", "Q4_K", 1, 4096, 2049)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "home" / tuned.FILE
    tuned.keep(path, "card A", {KEY: FASTER})
    return path


def test_shapes_of_a_class_share_a_key() -> None:
    assert KEY == "matmul Q4_K 1 4096 4096" == tuned.key("matmul", "Q4_K", 1, 2049, 4096)
    assert KEY != tuned.key("matmul", "Q4_K", 2, 4096, 4096)


def test_what_was_kept_is_used_on_that_card_alone(file: Path) -> None:
    first, said = tuned.read(file, "card A")
    assert said == [] and first.of(KEY, SHIPPED) == FASTER and first.of("another", SHIPPED) == SHIPPED
    said = [f"{file} is not used, kernels are launched as shipped: it knows no card B"]
    assert tuned.read(file, "card B") == (tuned.SHIPPED, said)
    tuned.keep(file, "card B", {KEY: Pair(32, 2)})
    tuned.keep(file, "card B", {"another": Pair(4, 1)})
    for card, want in (("card A", FASTER), ("card B", Pair(32, 2))):
        choices, said = tuned.read(file, card)
        assert said == [] and choices.of(KEY, SHIPPED) == want
    assert choices.of("another", SHIPPED) == Pair(4, 1) and list(file.parent.iterdir()) == [file]


def test_no_file_is_nothing_to_speak_of(tmp_path: Path) -> None:
    assert tuned.read(tmp_path / tuned.FILE, "card A") == (tuned.SHIPPED, [])


def test_other_versions_are_not_believed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuned, "version", lambda name: "0.1")
    choices, (said,) = tuned.read(file, "card A")
    assert f"it was measured with form {tuned.FORM}, triton" in said and choices == tuned.SHIPPED
    tuned.keep(file, "card A", {"another": FASTER})
    choices, none = tuned.read(file, "card A")
    assert none == [] and choices.of(KEY, SHIPPED) == SHIPPED and choices.of("another", SHIPPED) == FASTER


def changed(file: Path, change: Any) -> str:
    content = json.loads(file.read_text())
    change(content)
    return json.dumps(content)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop("cards"),
        lambda c: c.update(cards=[]),
        lambda c: c["cards"].update(x=3),
        lambda c: c["cards"]["card A"].pop("versions"),
        lambda c: c["cards"]["card A"]["choices"][KEY].update(n=3),
        lambda c: c["cards"]["card A"]["choices"][KEY].update(n=0),
        lambda c: c["cards"]["card A"]["choices"][KEY].update(n=1 << 20),
        lambda c: c["cards"]["card A"]["choices"][KEY].update(n=True),
        lambda c: c["cards"]["card A"]["choices"][KEY].update(n=8.0),
        lambda c: c["cards"]["card A"]["choices"][KEY].update(n="8"),
        lambda c: c["cards"]["card A"]["choices"][KEY].update(num_stages=9),
        lambda c: c["cards"]["card A"].update(choices={KEY: 3}),
    ],
)
def test_a_damaged_file_is_ignored_in_a_sentence(file: Path, change: Any) -> None:
    file.write_text(changed(file, change))
    said = [f"{file} is not used, kernels are launched as shipped: it is damaged"]
    assert tuned.read(file, "card A") == (tuned.SHIPPED, said)
    tuned.keep(file, "card A", {KEY: FASTER})
    choices, none = tuned.read(file, "card A")
    assert none == [] and choices.of(KEY, SHIPPED) == FASTER


@pytest.mark.parametrize("bytes", [b"", b"\xff\xfe", b"[1, 2]", b"{", b'{"form": {}}'])
def test_a_file_that_is_none_of_ours(file: Path, bytes: bytes) -> None:
    whole = file.read_bytes()
    for content in (bytes, whole[: len(whole) // 2]):
        file.write_bytes(content)
        _, (said,) = tuned.read(file, "card A")
        assert said.startswith(f"{file} is not used, kernels are launched as shipped: it ") and "\n" not in said


def test_a_folder_in_its_place(tmp_path: Path) -> None:
    _, (said,) = tuned.read(tmp_path, "card A")
    assert "Is a directory" in said


def test_another_kernel_has_other_numbers(file: Path) -> None:
    tuned.keep(file, "card A", {"another": Other(4)})
    choices, said = tuned.read(file, "card A")
    assert said == [] and choices.of("another", SHIPPED) == SHIPPED


def test_the_fastest_is_clearly_faster_and_runs() -> None:
    took = {SHIPPED: 1.0, Pair(16, 1): 0.98, Pair(32, 1): 0.5, Pair(64, 1): 0.7}
    ran: list[Pair] = []

    def run(how: Pair) -> Pair:
        ran.append(how)
        if how not in took:
            raise RuntimeError("out of resource: shared memory")
        return how

    others = [SHIPPED, Pair(128, 1), *took, Pair(128, 1)]
    assert tuned.fastest(SHIPPED, others, run, lambda call: took[call()]) == (Pair(32, 1), 0.5, 1.0)
    assert ran.count(SHIPPED) == 1 and ran.count(Pair(128, 1)) == 1
    assert tuned.fastest(SHIPPED, [Pair(16, 1)], run, lambda call: took[call()]) == (SHIPPED, 1.0, 1.0)
    with pytest.raises(RuntimeError, match="out of resource"):
        tuned.fastest(Pair(128, 1), [SHIPPED], run, lambda call: took[call()])


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    sizes = {"CARD": "cuda" if torch.cuda.is_available() else "cpu", "SHAPES": ((40, 512),), "ROTATED": 1 << 12}
    sizes |= {"N_EXPERT": 3, "N_EXPERT_USED": 2, "N_EMBD": 64, "N_FF_EXP": 32, "TOKENS": 30, "CONTEXTS": (320,)}
    sizes |= {"HEADS": {"mla": (3, 1, 24, 16)}, "CACHES": ("f16",)}
    for name, value in sizes.items():
        monkeypatch.setattr(gpu_kernels, name, value)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # random bytes are weights that overflow
def test_all_that_is_tried_is_told_and_kept(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([5.0, 5.0, 5.0, 1.0] + [5.0] * 100)

    def seconds(step: Any, turns: int) -> float:
        step(0)
        return next(times)

    monkeypatch.setattr(gpu_kernels, "seconds", seconds)
    path = tmp_path / tuned.FILE
    lines = list(gpu_tune.tuning(Clock(600), path, "card A", ("Q8_0",)))
    kept = json.loads(path.read_text())["cards"]["card A"]["choices"]
    assert len(kept) == len(lines) - 1 == 7
    said = (
        "| gate_up Q8_0/Q8_0 1 32 64 | 5000000.0 | 1000000.0 | n 2, parts 1, num_warps 2, num_stages 1, persistent 0 |"
    )
    assert lines[1] == said and all(line.endswith("| as shipped |") for line in lines[2:])
    times = iter([])
    assert list(gpu_tune.tuning(Clock(0), path, "card A", ("Q8_0",)))[1] == "| the others | left out: no time | | |"
    assert json.loads(path.read_text())["cards"]["card A"]["choices"] == kept


def test_every_candidate_computes_the_same(small: None) -> None:
    for case in (gpu_tune.attending((6, 2, 24, 16), "f16"), gpu_tune.attending((2, 1, 16, 16), "q8_0")):
        want = case.run(case.shipped)
        for how in case.others:
            torch.testing.assert_close(case.run(how), want, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("name", "cols"), [("Q8_0", 1312), ("F16", 40), ("F32", 512)])
def test_products_in_parts(name: str, cols: int, small: None) -> None:
    from gmoe.kernels.triton.matmul import Launch, matmul

    from tests.test_kernels_triton import DEVICE, weights

    w = weights(name, 33, cols, seed=1)
    for tokens in (1, 3):
        x = torch.randn(tokens, cols, generator=torch.Generator().manual_seed(2)).to(DEVICE)
        want = matmul(x, w)
        for parts in (2, 4, 8):
            how = Launch(16, parts, 4, 1)
            torch.testing.assert_close(matmul(x, w, how=how), want, atol=1e-5 * float(want.abs().max()), rtol=0)


def test_a_model_says_what_is_wrong_with_it_and_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GMOE_HOME", str(tmp_path))
    monkeypatch.setattr("gmoe.llm.open_device", lambda name: FakeDevice() if name.startswith("cuda") else None)
    path, options = write_model(tmp_path / "m.gguf", "qwen3moe"), gmoe.RuntimeOptions(context=64, device="cuda")
    with gmoe.LLM.load(path, options) as llm:
        want = llm.logits([3, 4])
        assert not [notice for notice in llm.notices if "launched" in notice]
    (tmp_path / tuned.FILE).write_text("{")
    with gmoe.LLM.load(path, options) as llm:
        assert f"{tmp_path / tuned.FILE} is not used, kernels are launched as shipped: it is damaged" in llm.notices
        assert np.array_equal(llm.logits([3, 4]), want)
    with gmoe.LLM.load(path, gmoe.RuntimeOptions(context=64)) as llm:
        assert not [notice for notice in llm.notices if "launched" in notice], "the CPU does not look"
