"""device="auto": the card where it computes what the CPU does, else the CPU with a word why; on the fake card."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from torch import Tensor

import gmoe
from gmoe.engine import selfcheck
from gmoe.experts.device import DeviceError
from gmoe.experts.device_auto import usable
from gmoe.gguf.file import UnsupportedModel
from tests import fake_device
from tests.factory import CPU_ALONE, ON_DEVICES, write_model
from tests.fake_device import FakeDevice, FakeTensor
from tests.test_device_offload import memory

IDS = [3, 4, 5, 6, 7, 8, 9]
GIVEN_UP = "the CPU computes everything, the card is not used: "


@pytest.fixture(autouse=True)
def usable_card(card: FakeDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine has a card, and what it runs is checked."""
    card.compiles = True
    monkeypatch.setattr("gmoe.experts.device_auto.usable", lambda: True)
    monkeypatch.setattr(selfcheck, "rehearse", lambda *_: None)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("auto") / "m.gguf", "qwen3moe")


def load(path: Path, **options: Any) -> gmoe.LLM:
    return gmoe.LLM.load(path, gmoe.RuntimeOptions(**{"context": 64, "max_sequences": 1} | options))


class Wrong:
    """The reference's kernels but for one, which `does` something else with what the right one gives."""

    def __init__(self, name: str, does: Any):
        self.name, self.does = name, does

    def __getattr__(self, name: str) -> Any:
        right = getattr(fake_device.kernels, name)
        if name != self.name:
            return right

        def run(*args: Any) -> Any:
            given = right(*args)
            return self.does(given, args)

        return run


def scaled(given: Any, args: Any) -> Any:
    """A twentieth too large."""
    if isinstance(given, tuple | list):
        return type(given)([given[0] * 1.05, *given[1:]])
    return given * 1.05


def filled(given: Any, args: Any) -> None:
    """Rows of experts, a tenth too large."""
    args[5].mul_(1.1)


def shifted(given: tuple[Tensor, Tensor], args: Any) -> tuple[Tensor, Tensor]:
    """The neighbours of the chosen experts."""
    ids, weights = given
    return FakeTensor((ids.inner + 1) % args[1].experts), weights  # type: ignore[attr-defined]


def no_number(given: Tensor, args: Any) -> Tensor:
    return given * float("nan")


def breaks(given: Any, args: Any) -> Any:
    raise RuntimeError("PassManager::run failed\nand much more")


def forgotten(given: Any, args: Any) -> None:
    """What was to be stored is not there."""
    kv, slots = args[:2]
    kv.values.index_fill_(0, slots // 32, 0.0)


WRONG = [
    ("linears", scaled, r"computes otherwise than the CPU: attention of layer 0 for 20 tokens is \d+% off"),
    ("attention", scaled, "computes otherwise than the CPU: attention of layer 0 for 20 tokens is 5% off"),
    ("attention", no_number, "computes otherwise than the CPU: attention of layer 0 for 20 tokens is no number"),
    ("attention", breaks, "cannot run the kernels of this model: PassManager::run failed and much more"),
    ("store", forgotten, r"computes otherwise than the CPU: attention of layer 0 for 20 tokens is \d+% off"),
    (
        "expert_rows",
        filled,
        "computes otherwise than the CPU: the feed-forward part of layer 0 for 20 tokens is 10% off",
    ),
    ("combine", scaled, "computes otherwise than the CPU: the feed-forward part of layer 0 for 20 tokens is 5% off"),
    ("choose", shifted, "computes otherwise than the CPU: the router of layer 0 for 20 tokens chooses other experts"),
    ("rms_norm", scaled, "computes otherwise than the CPU: the norm of layer 0 for 20 tokens is 5% off"),
    ("heads", scaled, r"computes otherwise than the CPU: attention of layer 0 for 20 tokens is \d+% off"),
]


@pytest.mark.parametrize(("kernel", "does", "said"), WRONG, ids=lambda x: getattr(x, "__name__", str(x)[:20]))
def test_a_wrong_kernel_is_not_used(kernel: str, does: Any, said: str, model: Path, card: FakeDevice) -> None:
    with load(model, device="cpu") as llm:
        want, notices = llm.logits(IDS), llm.notices
    card.computes = lambda choices: Wrong(kernel, does)
    with pytest.raises(DeviceError, match=f"^a fake card {said}$"):
        load(model, device="cuda")
    with load(model) as llm:
        assert llm.device is None and np.array_equal(llm.logits(IDS), want)
        assert llm.notices[1:] == notices and llm.notices[0].startswith(GIVEN_UP + "a fake card c")
    assert card.taken == 0, "nothing stays on the card"


@pytest.mark.parametrize("architecture", ON_DEVICES)
def test_the_right_ones_are(architecture: str, tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", architecture)
    with load(path) as llm:
        assert llm.device is not None and llm.options.device == "cuda", llm.notices
        assert not any(notice.startswith(GIVEN_UP) for notice in llm.notices)
        assert not any(layer.keys.inner.any() for layer in llm._engine.runner.kv.layers)
        assert llm.stats["gpu"]["hits"] == llm.stats["gpu"]["misses"] == 0 == llm.stats["routed"]["count"]


@pytest.mark.parametrize("architecture", CPU_ALONE)
def test_what_no_device_runs_yet_is_the_cpus(architecture: str, tmp_path: Path) -> None:
    path, said = write_model(tmp_path / "m.gguf", architecture), "not on a device yet; say --device cpu"
    with load(path) as llm:
        assert llm.device is None and said in llm.notices[0] and llm.notices[0].startswith(GIVEN_UP)
    with pytest.raises(UnsupportedModel, match=f"^{path}: general.architecture: .*{said}$"):
        load(path, device="cuda")


@pytest.mark.parametrize("kv_type", ["bf16", "f32", "q8_0"])
def test_with_any_cache(model: Path, kv_type: str) -> None:
    with load(model, kv_type=kv_type, activations="float") as llm:
        assert llm.device is not None


def test_with_experts_that_do_not_fit(model: Path) -> None:
    with load(model, device="cpu") as llm:
        size = memory(llm.budget, "one")
    with load(model, gpu_memory=size, miss="load") as llm:
        assert llm.device is not None and not llm.store.whole
        assert llm.stats["gpu"]["misses"] == 0 and not llm.store.here(0).any()


def test_a_card_that_is_too_small(model: Path, card: FakeDevice) -> None:
    card.memory = 1 << 20
    with load(model) as llm:
        assert llm.device is None and llm.logits(IDS).shape[0] == len(IDS)
        assert llm.notices[0].startswith(GIVEN_UP) and "MiB" in llm.notices[0]
    with pytest.raises(ValueError, match="MiB"):
        load(model, device="cuda")


def test_what_only_a_card_can_do_is_given_up_with_it(model: Path, card: FakeDevice) -> None:
    fake_device.refused.append(6)
    with load(model, gpu_memory="1GiB", miss="balance") as llm:
        assert llm.device is None and llm.options.miss == "auto" == llm.options.gpu_memory


def test_without_a_card_nothing_is_said(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gmoe.experts.device_auto.usable", lambda: False)
    with load(model) as llm, load(model, device="cpu") as cpu:
        assert llm.device is None and llm.notices == cpu.notices and llm.options.device == "cpu"
    with load(model, gpu_memory="1GiB") as llm:
        assert llm.notices == ["gpu_memory='1GiB' is not used: there is no card here", *cpu.notices]
        assert llm.options.gpu_memory == "auto"
    with pytest.raises(ValueError, match="gpu_memory='1GiB' needs device='cuda'"):
        load(model, device="cpu", gpu_memory="1GiB")
    with pytest.raises(ValueError, match="miss='cpu' needs a device beside the CPU"):
        load(model, miss="cpu")


def test_a_damaged_model_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", "qwen3moe")
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ValueError) as without:
        load(path, device="cpu")
    with pytest.raises(ValueError) as auto:
        load(path)
    assert str(auto.value) == str(without.value)


def test_a_machine_is_only_asked() -> None:
    def fails() -> bool:
        raise RuntimeError("CUDA driver version is insufficient for CUDA runtime version")

    def warns() -> bool:
        import warnings

        warnings.warn("CUDA initialization: The NVIDIA driver on your system is too old", stacklevel=1)
        return False

    untouched = SimpleNamespace()  # not even asked
    assert not usable(untouched, None)
    assert not usable(SimpleNamespace(is_available=fails), "12.8")
    assert not usable(SimpleNamespace(is_available=warns), "12.8")
    assert usable(SimpleNamespace(is_available=lambda: True), "12.8")


def test_what_is_no_number_on_the_cpu_says_nothing() -> None:
    selfcheck._near("a card", "it", torch.ones(2), torch.tensor([1.0, float("inf")]))
    selfcheck._near("a card", "it", torch.tensor([1.0, 1.015]), torch.ones(2))
    with pytest.raises(DeviceError, match="^a card computes otherwise than the CPU: it is 3% off$"):
        selfcheck._near("a card", "it", torch.tensor([1.0, 1.04]), torch.ones(2))


@pytest.mark.parametrize(("architecture", "quant"), [("qwen3moe", "Q4_0"), ("gpt-oss", "F32")])
def test_tritons_own_kernels_pass(architecture: str, quant: str, tmp_path: Path, triton: None) -> None:
    with load(write_model(tmp_path / "m.gguf", architecture, quant=quant)) as llm:
        assert llm.device is not None, llm.notices
