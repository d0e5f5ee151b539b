"""What a GGUF file suggests for its answers: counted where nobody else says anything, and said where it cannot be."""

from pathlib import Path

import gguf
import numpy as np
import pytest

import gmoe
from gmoe.engine.suggested import suggested
from tests.factory import write_model


def test_keys_of_llama_cpp_become_fields() -> None:
    keys = {
        **{"top_k": -1, "top_p": np.float32(0.5), "min_p": 0.25, "temp": 0.6, "penalty_last_n": 16},
        **{"penalty_repeat": 1.5, "xtc_probability": 0.5, "xtc_threshold": 0.25, "mirostat": 2},
        **{"mirostat_tau": 4.0, "mirostat_eta": 0.5, "sequence": "temp;top-k;typ_p"},
    }
    found, notices = suggested({f"general.sampling.{name}": value for name, value in keys.items()}, "m")
    assert notices == [] and gmoe.SamplingParams(**found) == gmoe.SamplingParams(
        **{"top_k": 0, "top_p": 0.5, "min_p": 0.25, "temperature": 0.6, "repeat_last_n": 16, "repeat_penalty": 1.5},
        **{"xtc_probability": 0.5, "xtc_threshold": 0.25, "mirostat": 2, "mirostat_tau": 4.0, "mirostat_eta": 0.5},
        samplers=("temperature", "top_k", "typical_p"),
    )


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("mirostat", 3, "mirostat is 3; it must be between 0 and 2"),
        ("temp", "hot", "temperature is 'hot'; it must be a finite number"),
        ("sequence", "infill", "samplers has 'infill'; there are penalties, dry,"),
        ("seed", 3, "it is not known"),
    ],
)
def test_what_cannot_be_used_is_said(name: str, value: object, sentence: str) -> None:
    found, notices = suggested({f"general.sampling.{name}": value}, "m.gguf")
    assert found == {} and len(notices) == 1
    assert notices[0].startswith(f"m.gguf: general.sampling.{name} is not used: {sentence}")


def test_a_model_answers_as_its_file_suggests(tmp_path: Path) -> None:
    plain, path = write_model(tmp_path / "plain.gguf"), tmp_path / "m.gguf"
    reader = gguf.GGUFReader(plain)
    writer = gguf.GGUFWriter(path, "qwen3moe")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            kind = field.types[0]
            writer.add_key_value(field.name, field.contents(), kind, field.types[-1] if len(field.types) > 1 else None)
    writer.add_float32("general.sampling.temp", 0.0)
    writer.add_int32("general.sampling.top_k", 7)
    writer.add_int32("general.sampling.mirostat", 3)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with gmoe.LLM.load(path) as llm:
        assert llm.defaults == gmoe.SamplingParams(temperature=0.0, top_k=7)
        assert llm.notices == [
            f"{path}: general.sampling.mirostat is not used: mirostat is 3; it must be between 0 and 2"
        ]
        first, second = ([event.token_id for event in llm.generate("he")][:8] for _ in range(2))
        assert first == second
