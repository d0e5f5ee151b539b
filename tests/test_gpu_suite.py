"""The GPU suite where there is no card: it says so, and what it does with models runs on the fake device."""

import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from tests.factory import write_model
from tests.fake_device import FakeDevice
from tools import gpu_end_to_end, gpu_kernels, gpu_suite, gpu_tune
from tools.gpu_end_to_end import Clock, Sizes

TRITONS = "ignore:AnnAssign.__init__ missing:DeprecationWarning"  # its own, from Python 3.13 on
SMALL = Sizes(prompt=9, depth=3, generate=2, threads=1, vocabulary=250)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model on a machine whose card is a fake."""
    monkeypatch.setattr("gmoe.llm.open_device", lambda name: FakeDevice() if name.startswith("cuda") else None)
    return write_model(tmp_path / "m.gguf", "qwen3moe")


def here(path: Path) -> Callable[..., Any]:
    """What `Apart` asks of another process, where the card is a fake of this one."""

    def ask(what: str, *how: Any) -> Any:
        if what == "agreement":
            return gpu_end_to_end.agreement(path, SMALL)
        return gpu_end_to_end.rows(path, *how[:2], SMALL, *how[2:])

    return ask


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a card: the suite itself is the test")
def test_without_a_card_it_says_so() -> None:
    with pytest.raises(SystemExit, match="this machine has no CUDA device that torch can use"):
        gpu_suite.main([])


def test_all_tables_of_a_model(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def peer(path: Path, experts_on_cpu: int, sizes: Sizes) -> dict[str, float]:
        asked.append(experts_on_cpu)
        if experts_on_cpu == 2:
            return {"decode": 0.5, "prefill": 0.25, "load": 1.0}
        raise ValueError("llama.cpp ended with 1\nand more")

    monkeypatch.setattr(gpu_end_to_end, "peer", peer)
    lines = list(gpu_end_to_end.tables(model, SMALL, Clock(120), 24e9, 2, here(model)))
    text = "\n".join(lines)
    assert "bits equal" in text and "NOT" not in text and asked == [0, 1, 2]
    assert "| 2 of 2 | 0.5 | 0 |" in text and "| 0 of 2 | failed: ValueError: llama.cpp ended with 1 |" in text
    assert "The link moves 24.0 GB/s; 4 times slower" in text
    ours = [line for line in lines if line.startswith(("| 10%", "| 25%", "| 50%", "| 100%", "| 0%"))]
    assert len(ours) == 7 + 5 and all("failed" not in line for line in ours)
    whole = next(line for line in ours if line.startswith("| 100%, load |"))
    assert whole.split("|")[4:6] == [" 100% ", " 0.0 "]


def test_a_model_is_written_and_loaded_ahead(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def written(path: Path, shape: object, types: str) -> None:
        assert path.suffix == ".part", "what is not whole has another name"
        path.write_bytes(model.read_bytes())

    monkeypatch.setattr("tools.synth_model.synthesize", written)
    monkeypatch.setattr(gpu_end_to_end, "Sizes", lambda: SMALL)
    gpu_end_to_end.once(tmp_path)
    assert [path.stem for path in tmp_path.iterdir()].count("qwen3moe-12x64-Q4_K_M") == 1
    assert not list(tmp_path.glob("*.part"))


def test_what_there_is_no_time_for_is_said(model: Path) -> None:
    lines = list(gpu_end_to_end.tables(model, SMALL, Clock(0), 6e9, 2, here(model)))
    assert sum(line.endswith("| left out: no time |") for line in lines) == 1 + 3 + 7 + 5


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a card, and answers")
def test_a_process_apart_answers_fails_and_crashes(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", "qwen3moe")  # this machine has no card, which is an error like others
    apart = gpu_end_to_end.Apart(path, SMALL)
    with pytest.raises(ValueError, match="DeviceError: device='cuda' "):
        apart.ask("rows", 0.5, "load")
    first = apart.process
    with pytest.raises(ValueError, match="DeviceError"):
        apart.ask("agreement")
    assert apart.process is first, "it goes on"
    program = "import ctypes, sys; sys.stdin.readline(); ctypes.string_at(1)"
    apart.close()
    apart.said = tempfile.TemporaryFile("w+")
    apart.process = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=apart.said,
        text=True,
    )
    with pytest.raises(ValueError, match="its process ended with -11: Fatal Python error: Segmentation fault; File"):
        apart.ask("agreement")
    assert apart.process is None, "the next begins anew"


def test_a_slow_link_copies_again(model: Path) -> None:
    with gpu_end_to_end.loaded(model, 0.25, 3, context=64, miss="load") as llm:
        device = llm.device._device
        before = device.uploads
        llm.logits([5])
        assert device.uploads > before and (device.uploads - before) % 3 == 0


@pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed")
def test_llama_cpp_keeps_experts_on_the_cpu(model: Path) -> None:
    sizes = Sizes(prompt=9, depth=3, generate=2, threads=1, vocabulary=250)
    for count in (0, 2):
        found = gpu_end_to_end.peer(model, count, sizes)
        assert found["decode"] > 0 and found["prefill"] > 0
    with pytest.raises(ValueError, match="llama.cpp ended with 1"):
        gpu_end_to_end.peer(model.with_name("nothing.gguf"), 0, sizes)


def test_a_peer_is_built_from_its_source_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llama_cpp_python-1").mkdir()
    with tarfile.open(tmp_path / "llama_cpp_python-1.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "llama_cpp_python-1", "llama_cpp_python-1")
    for folder in ("there", "bin"):
        (tmp_path / folder).mkdir()
    cmake = tmp_path / "bin/cmake"  # `-S . -B made ...` says how, `--build made ...` makes
    cmake.write_text(
        '#!/bin/sh\nif [ "$1" = -S ]; then mkdir -p "$4/bin"; echo "$@" > "$4/how"\n'
        'else mv "$2/how" "$2/bin/libllama.so"; fi\n'
    )
    cmake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{cmake.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", "before")
    process = gpu_suite.build_peer(tmp_path, tmp_path / "there", ["-DGGML_CUDA=on"])
    assert process is not None and gpu_suite.finish(process, 60.0)
    source = tmp_path / "there/llama_cpp_python-1"
    assert os.environ["PYTHONPATH"] == f"{source}{os.pathsep}before"
    assert (source / "llama_cpp/lib/libllama.so").read_text().endswith("-DLLAVA_BUILD=off -DGGML_CUDA=on\n")
    assert gpu_suite.build_peer(tmp_path / "there", tmp_path, []) is None


def test_a_stripped_source_has_what_compiles(tmp_path: Path) -> None:
    kept = ["p/CMakeLists.txt", "p/vendor/llama.cpp/src/a.cpp", "p/vendor/llama.cpp/src/models/b.cpp"]
    for name in (*kept, "p/vendor/llama.cpp/models/big.gguf", "p/.git/objects/1"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    with tarfile.open(tmp_path / "old.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "p", "p")
    gpu_suite.strip(tmp_path / "old.tar.gz", tmp_path / "new.tar.gz")
    with tarfile.open(tmp_path / "new.tar.gz") as archive:
        files = [entry.name for entry in archive if entry.isfile()]
        assert sorted(files) == kept


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Triton's assembler is Linux's")
def test_kernels_compile_for_cards_that_are_not_here() -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    command = [sys.executable, "-W", "error", "-m", "tools.compile_kernels", "--parts", "weights"]
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/tmp"}  # not TRITON_INTERPRET
    done = subprocess.run(
        [*command, "--formats", "Q4_K", "IQ3_S", "--tiles", "64", "--cards", "8.9"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr
    assert "| Q4_K | 64 | 26 KiB |" in done.stdout and "| IQ3_S | 64 | 96 KiB |" in done.stdout


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Triton's assembler is Linux's")
def test_attention_compiles_for_a_card_that_is_not_here() -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    program = (
        "from tools.compile_kernels import *\n"
        "for step in STEPS: print(max(attention_needs((8, 128, 128), 'q8_0', step, '8.9').values()))\n"
        "print(max(step_needs((8, 128, 128), 'q8_0', '8.9').values()))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", TRITONS, "-c", program],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "HOME": "/tmp"},
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr
    assert [int(line) // 1024 for line in done.stdout.split()] == [52, 52, 80, 4]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # random bytes are weights that overflow
def test_all_tables_of_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpreted, at small sizes, each once: only what the clock says is not there."""
    pytest.importorskip("triton", reason="triton is not installed")
    from gmoe.kernels.triton.tuned import SHIPPED

    sizes = {"CARD": "cpu", "MATRICES": ("Q8_0",), "SHAPES": ((8, 256),), "ROTATED": 1 << 12, "N_EXPERT": 4}
    sizes |= {"N_EXPERT_USED": 2, "N_EMBD": 32, "N_FF_EXP": 32, "TOKENS": 3, "CONTEXTS": (64,), "PROMPT": 32}
    sizes |= {"HEADS": {"mla": (3, 1, 24, 16)}, "QKV": (16, 8, 8)}
    for name, value in sizes.items():
        monkeypatch.setattr(gpu_kernels, name, value)
    monkeypatch.setattr(gpu_kernels, "seconds", lambda step, turns: 1e-3 if step(0) is None else 2e-3)
    text = "\n".join(gpu_kernels.kernels(Clock(60), SHIPPED))
    for begin in (
        "| Q8_0 | 8 x 256 |",
        "| mla | q8_0 | 64 | 2000 |",
        "| mla | f16 | 0.0 | 100% |",
        "| sum and norm | 2000 |",
    ):
        assert begin in text


def test_the_kernels_tests_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tests").mkdir()
    for part in gpu_suite.CHECKS:
        (tmp_path / f"tests/test_{part}.py").write_text("def test_one(): pass\ndef test_two(): pass\n")
    monkeypatch.setattr(gpu_suite, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_suite, "WORKERS", 1)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # they take a second to import
    assert gpu_suite.checked(60.0) == "passed"
    with (tmp_path / "tests/test_kernels_triton_step.py").open("a") as file:
        file.write("def test_three(): assert False\n")
    assert gpu_suite.checked(60.0) == "FAILED"


def test_what_is_timed_is_compiled_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    began: list[str] = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, cwd: began.append(command[-1]))
    gpu_suite.compile_ahead(["kernels", "models"], Path("/there"))
    assert len(began) == len(gpu_kernels.TABLES) + 1 and began[-1].endswith("; gpu_end_to_end.once(Path('/there'))")
    assert began[0].endswith("; gpu_kernels.once('gemv')")
    gpu_suite.compile_ahead(["tune"], Path("/there"))
    assert began[-1].endswith("; gpu_tune.once('MXFP4')")
    ran: list[object] = []
    monkeypatch.setattr(gpu_kernels, "launches", lambda choices: iter([ran.append(gpu_kernels.seconds(ran.append, 9))]))
    gpu_kernels.once("launches")
    assert ran == [0, 1.0], "once, and no clock"
    case = gpu_tune.Case("key", "a", ["b", "c"], lambda how: ran.append(how) or {"a": 1, "c": 2}[how])
    monkeypatch.setattr(gpu_tune, "cases", lambda formats: iter([lambda: [case]]))
    gpu_tune.once("Q4_K")
    assert ran[2:] == ["a", "b", "c"], "one that fails stops nothing"


def test_the_suite_from_end_to_end(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it but the compiled kernels, on a machine that is told it has a card."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # the suite takes it away; it is put back
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a fake card")
    monkeypatch.setattr("gmoe.experts.device.open_device", lambda name: FakeDevice())
    monkeypatch.setattr(gpu_suite, "model_file", lambda folder: model)
    monkeypatch.setattr(gpu_suite, "Apart", lambda path, sizes: SimpleNamespace(ask=here(path), close=lambda: None))
    monkeypatch.setattr(gpu_suite, "Sizes", lambda: SMALL)
    monkeypatch.setattr(gpu_suite, "SHAPE", replace(gpu_suite.SHAPE, layer=2))
    monkeypatch.setattr(gpu_end_to_end, "peer", lambda *_: {"decode": 1.0, "prefill": 1.0, "load": 1.0})
    monkeypatch.setattr(gpu_suite, "checked", lambda seconds: "FAILED")
    monkeypatch.setattr(gpu_suite, "compile_ahead", lambda parts, folder: [])
    asked: list[str] = []
    monkeypatch.setattr(
        gpu_suite, "tuning", lambda clock, path, card: asked.append(f"{path.name}, {card}") or ["tuned"]
    )
    with pytest.raises(SystemExit) as end:
        gpu_suite.main(["--parts", "tune", "models", "--out", str(tmp_path / "gpu.md"), "--minutes", "2"])
    assert end.value.code == 1, "kernels that fail their tests are a failure, whatever was timed"
    text = (tmp_path / "gpu.md").read_text()
    assert asked == ["tuned.json, a fake card"]
    assert "a fake card" in text and "compiled: FAILED" in text and "The whole suite took" in text
    assert "bits equal" in text and "failed:" not in text and "left out" not in text
