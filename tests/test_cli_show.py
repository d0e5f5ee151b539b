"""`gmoe show` on factory files: the sections, the expert table, and files that it must not believe."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from click.testing import CliRunner, Result

from gmoe.cli.main import cli
from gmoe.cli.show import FILE_TYPES, describe
from gmoe.gguf.file import GGUFFile
from gmoe.library.modelfile import Command, Modelfile
from tests.factory import CHATML, Shape, add_tokenizer, write_model


def show(*args: str) -> Result:
    return CliRunner().invoke(cli, ["show", *args])


def sections(text: str) -> dict[str, dict[str, str]]:
    """Title -> first cell of a row -> the rest of the row."""
    found: dict[str, dict[str, str]] = {}
    title = ""
    for line in filter(None, text.splitlines()):
        if line.startswith("    "):
            name, _, rest = line.strip().partition("    ")
            found[title][name] = rest.strip()
        else:
            title = line.strip()
            found[title] = {}
    return found


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_model(tmp_path_factory.mktemp("show") / "tiny.gguf"))


def test_the_sections(tiny: str) -> None:
    result = show(tiny)
    assert (result.exit_code, result.stderr) == (0, "")
    found = sections(result.stdout)
    assert list(found) == ["Model", "Capabilities", "Experts"]
    assert found["Model"]["architecture"] == "qwen3moe"
    assert found["Model"]["embedding length"] == str(Shape().embd)
    assert found["Model"]["quantization"] == "F32"
    assert list(found["Capabilities"]) == ["completion"]


def test_the_expert_table_counts_what_is_in_the_file(tiny: str) -> None:
    shape = Shape()
    one = 3 * shape.embd * shape.ff_exp * 4  # bytes: gate, up and down in float32
    experts = sections(show(tiny).stdout)["Experts"]
    assert experts["experts"] == f"{shape.expert} a layer"
    assert experts["shared"] == "none"
    assert experts["layers"] == f"{shape.layer} of {shape.layer} have experts"
    assert experts["all experts"].startswith(f"{shape.layer * shape.expert * one / 1024:.1f} KiB of ")
    assert experts[f"layers 0-{shape.layer - 1}"] == f"F32/F32/F32, {one / 1024:.1f} KiB an expert"
    metadata = {f"layer {n}" for n in range(shape.layer)}
    assert metadata <= set(sections(show(tiny, "-v").stdout)["Experts"])


def test_shared_experts_and_dense_layers(tmp_path: Path) -> None:
    found = sections(show(str(write_model(tmp_path / "m.gguf", "deepseek2"))).stdout)["Experts"]
    assert found["shared"] == "1"
    assert found["layers"] == "2 of 3 have experts"
    assert "layers 1-2" in found
    assert "Experts" not in sections(show(str(write_model(tmp_path / "d.gguf", "llama"))).stdout)


def test_verbose_adds_metadata_and_tensors(tiny: str) -> None:
    found = sections(show(tiny, "--verbose").stdout)
    assert found["Metadata"]["general.architecture"] == "qwen3moe"
    assert found["Metadata"]["tokenizer.ggml.tokens"].endswith("entries)")
    with GGUFFile.open(tiny) as file:
        assert list(found["Tensors"]) == list(file.tensors)


def test_one_part_alone(tiny: str) -> None:
    assert show(tiny, "--template").stdout == CHATML + "\n"
    assert show(tiny, "--license").stdout == show(tiny, "--parameters").stdout == "\n"
    both = show(tiny, "--license", "--template")
    assert both.exit_code == 2 and "only one of" in both.stderr


def test_licence_parameters_and_capabilities(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(str(path), "newarch")
    writer.add_license("mit")
    writer.add_float32("general.sampling.temp", 0.6)
    writer.add_file_type(15)
    add_tokenizer(writer, "{{ tools }}{% if enable_thinking %}{% endif %}")
    write(writer)
    found = sections(show(str(path)).stdout)
    assert found["Model"] == {"architecture": "newarch", "parameters": "4", "quantization": "Q4_K_M"}
    assert list(found["Capabilities"]) == ["completion", "tools", "thinking"]
    assert found["Parameters"] == {"temp": "0.6"}
    assert list(found["License"]) == ["mit"]
    assert show(str(path), "--license").stdout == "mit\n"
    assert show(str(path), "--parameters").stdout == "temp    0.6\n"
    with GGUFFile.open(path) as file:
        own = Modelfile((Command("parameter", "false", "use_mmap"),))
        assert "    use_mmap    false\n" in describe(file, modelfile=own)


def test_text_of_a_file_does_not_command_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(str(path), "a")
    writer.add_license("\x1b[2Jgone\r")
    write(writer)
    text = show(str(path), "-v").stdout
    assert "\x1b" not in text and "\r" not in text and r"\x1b[2Jgone" in text


@pytest.mark.parametrize(
    ("key", "value"),
    [("expert_count", 1 << 31), ("expert_count", -3), ("expert_count", "four"), ("context_length", [1, 2])],
)
def test_absurd_counts_are_not_believed(tmp_path: Path, key: str, value: object) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(str(path), "a")
    writer.add_key_value(f"a.{key}", value, *kinds(value))
    writer.add_tensor("blk.99999.ffn_up_exps.weight", np.zeros((2, 2, 2), np.float32))
    write(writer)
    result = show(str(path))
    assert result.exit_code == 0 and "Experts" not in sections(result.stdout)


def kinds(value: object) -> tuple[gguf.GGUFValueType, ...]:
    kind = gguf.GGUFValueType
    if isinstance(value, list):
        return kind.ARRAY, kind.INT32
    return (kind.STRING if isinstance(value, str) else kind.INT64,)


def test_a_file_type_is_named_as_ggml_names_it() -> None:
    theirs = {int(kind): kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in gguf.LlamaFileType}
    ours = {number: name for number, name in FILE_TYPES.items() if name != "-"}
    assert ours == {number: name for number, name in theirs.items() if number < 40}


def test_describe_works_on_every_architecture(tmp_path: Path) -> None:
    for name in ("gpt-oss", "granitemoe", "llama4"):
        with GGUFFile.open(write_model(tmp_path / f"{name}.gguf", name)) as file:
            assert sections(describe(file))["Experts"]["experts"] == f"{Shape().expert} a layer"


def write(writer: gguf.GGUFWriter) -> None:
    writer.add_tensor("t", np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
