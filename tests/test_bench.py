"""`gmoe bench`: the fields that scripts read in llama-bench's output, in each of its forms."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gmoe.cli.bench import bench
from tests.factory import write_model

# Those of llama-bench that have an honest value here, with what this run must say.
FIELDS: dict[str, Any] = {
    **{"build_number": 0, "gpu_info": "", "backends": "CPU", "n_gpu_layers": 0, "n_threads": 1},
    **{"model_type": "qwen3moe F32", "type_k": "q8_0", "type_v": "q8_0", "cpu_mask": "0x0", "cpu_strict": False},
    **{"split_mode": "none", "main_gpu": 0, "no_kv_offload": False, "tensor_split": "0.00", "flash_attn": True},
    **{"use_mmap": True, "use_direct_io": False, "embeddings": False, "n_prompt": 8, "n_gen": 0, "n_depth": 4},
}
KINDS: dict[str, Any] = {
    **{"build_commit": str, "cpu_info": str, "model_filename": str, "model_size": int, "model_n_params": int},
    **{"n_batch": int, "n_ubatch": int, "test_time": str, "avg_ns": int, "stddev_ns": int, "avg_ts": float},
    **{"stddev_ts": float, "samples_ns": list, "samples_ts": list},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("bench") / "m.gguf")


def measured(model: Path, output: str, *more: str) -> str:
    short = ("-p", "8", "-n", "4", "-d", "4", "-r", "2", "-t", "1", "--kv-type", "q8_0")
    ran = CliRunner().invoke(bench, [str(model), *short, "-o", output, *more])
    assert ran.exit_code == 0, ran.output
    return ran.stdout


def test_json_has_the_fields_of_llama_bench(model: Path) -> None:
    prompt, answer = json.loads(measured(model, "json"))
    assert {name: prompt[name] for name in FIELDS} == FIELDS
    assert all(type(prompt[name]) is kind for name, kind in KINDS.items())
    assert (answer["n_prompt"], answer["n_gen"], answer["n_depth"]) == (0, 4, 4)
    assert len(prompt["samples_ns"]) == len(prompt["samples_ts"]) == 2 and prompt["model_filename"] == str(model)
    assert prompt["disk_share"] is None and answer["bandwidth_share"] > 0
    rate = 8e9 / prompt["samples_ns"][0]
    assert prompt["samples_ts"][0] == pytest.approx(rate, rel=1e-3)


def test_other_forms_say_the_same(model: Path) -> None:
    lines = [json.loads(line) for line in measured(model, "jsonl").splitlines()]
    table = list(csv.DictReader(io.StringIO(measured(model, "csv"))))
    assert [list(line) for line in lines] == [list(row) for row in table] and len(table) == 2
    markdown = measured(model, "md").splitlines()
    assert "| disk read |" in markdown[0] and "pp8 @ d4" in markdown[2] and "tg4 @ d4" in markdown[3]


def test_direct_reads_are_said(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gmoe.machine.disk_bandwidth", lambda path: 1e9)  # the file is too small to measure it
    small = measured(model, "json", "--host-memory", "330KiB", "--reader", "direct")
    rows = json.loads(small)
    assert {(row["use_mmap"], row["use_direct_io"]) for row in rows} == {(False, True)}
    assert all(row["disk_share"] > 0 for row in rows)


def test_defaults_are_said_as_numbers() -> None:
    said = " ".join(CliRunner().invoke(bench, ["--help"]).stdout.split())
    assert all(f"[default: {number}]" in said for number in (512, 128, 0))
