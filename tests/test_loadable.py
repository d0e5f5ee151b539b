"""What no load would accept is refused when the model is made, with its line; the rest is left to loading."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from gmoe.cli.main import cli
from gmoe.engine.choices import AVAILABLE
from gmoe.experts import policy
from gmoe.experts.fingerprint import header
from gmoe.experts.recorder import Recorder
from gmoe.experts.trace_csv import to_csv
from gmoe.experts.trace_file import TraceFile
from gmoe.gguf.file import GGUFFile
from gmoe.gguf.layout import ExpertLayout
from gmoe.library.find import Package, find
from gmoe.library.manifest import Library
from gmoe.library.modelfile import Command, Modelfile, ModelfileError, parse_modelfile
from gmoe.loadable import NOBODY, options_to_load, require_loadable, require_options
from gmoe.options import POLICIES, RuntimeOptions
from gmoe.passes.twin import twin
from gmoe.server.ask import Refused
from gmoe.server.catalog import Catalog
from gmoe.server.ollama_models import CreateBody, recipe, show, summary
from tests.factory import write_model

EXAMPLE = Path(__file__).parents[1] / "Modelfile.example"
REFUSED = [
    ("# gmoe: miss nonsense", "line 2: miss='nonsense' is not available in this version; available: auto, balance,"),
    ("# gmoe: evict belady", "line 2: evict='belady' is not available"),
    ("# gmoe: admission x", "line 2: admission='x' is not available in this version; available: deadline,"),
    ("# gmoe: threads 513", "line 2: threads is 513; it must be at most 512"),
    ("# gmoe: context -1", "line 2: context is -1; it must be a whole number of at least 0"),
    ("# gmoe: quality high\n# gmoe: max_kld 1", "line 3: quality is 'high' and max_kld 1; give one of them"),
    ("# gmoe: quality high\n# gmoe: miss skip", "line 2: quality and max_kld choose the lossy policies; miss='skip'"),
    ("# gmoe: gpu_memory 80%\n# gmoe: device cpu", "line 2: gpu_memory='80%' needs device='cuda'"),
    ("# gmoe: policy.t1 0.6", "line 2: policy: no knob is called 't1'; the chosen policies have none"),
    (
        "# gmoe: policy.t1 1\n# gmoe: policy.z 1\n# gmoe: miss hobbit",
        "line 3: policy: no knob is called 'z'; the chosen",
    ),
    ("# gmoe: policy.z 1\n# gmoe: miss z", "line 3: miss='z' is not available"),
    (
        "# gmoe: policy.most 0\n# gmoe: miss buddy\n# gmoe: policy.tau 3",
        "line 4: the knob tau is 3; it must be a number",
    ),
    ("# gmoe: route adaptive_k\n# gmoe: policy.threshold x", "line 3: the knob threshold is 'x'"),
    ("# gmoe: miss hobbit\n# gmoe: policy.t1 .85\n# gmoe: policy.t2 .7", "line 4: the knob t1 is 0.85 and t2 is 0.7"),
    ("PARSER klingon", "line 2: PARSER klingon is not supported; supported: cohere, deepseek,"),
    ("PARAMETER num_thread 513", "line 2: num_thread: threads is 513; it must be at most 512"),
    ("PARAMETER top_p -0.1", "line 2: top_p is -0.1; it must be between 0 and 1"),
    ("PARAMETER top_p nan", "line 2: top_p is nan; it must be a finite number"),
    ("PARAMETER temperature nan", "line 2: temperature is nan; it must be a finite number"),
    ('PARAMETER stop ""', "line 2: stop must be a list of texts, none of them empty"),
]
LEFT = [
    "# gmoe: device cuda:7\n# gmoe: gpu_memory 80%\n# gmoe: miss cpu",
    "# gmoe: miss hobbit\n# gmoe: policy.t1 0.95\n# gmoe: policy.t2 0.97",
    "# gmoe: max_kld 0\n# gmoe: route smoe\n# gmoe: policy.alpha 0.5",
    "# gmoe: miss balance\n# gmoe: device auto",
    "PARAMETER num_predict -2\nPARAMETER seed -1\nPARAMETER num_ctx 0\nPARAMETER num_gpu -1",
    "PARAMETER num_ctx -1\nPARAMETER num_thread -1\nPARAMETER num_predict 0\nPARAMETER top_k -1",
    "PARAMETER top_p 1.1\nPARAMETER typical_p 2",
    "PARSER lfm2\nRENDERER lfm2",
    "PARSER qwen3-coder\nRENDERER klingon\nPARAMETER mirostat 7",
]


@pytest.mark.parametrize(("lines", "sentence"), REFUSED)
def test_what_no_load_would_accept_is_refused_with_its_line(lines: str, sentence: str) -> None:
    with pytest.raises(ModelfileError) as error:
        parse_modelfile(f"FROM x\n{lines}\n", require_loadable)
    assert str(error.value).startswith(sentence)


@pytest.mark.parametrize("lines", LEFT)
def test_what_some_machine_would_accept_is_not_refused(lines: str) -> None:
    assert parse_modelfile(f"FROM x\n{lines}\n", require_loadable) == parse_modelfile(f"FROM x\n{lines}\n")


@pytest.mark.parametrize(
    "given", [{"policy": {"t1": 0.6}}, {"gpu_memory": "80%"}, {"evict": "lfu", "policy": {"aging": 5, "tau": 0.1}}]
)
def test_options_that_a_modelfile_may_complete_are_not_refused(given: dict[str, Any]) -> None:
    require_options(RuntimeOptions(**given))


def test_the_example_can_be_loaded() -> None:
    assert parse_modelfile(EXAMPLE.read_bytes(), require_loadable).options["miss"] == "hobbit"


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in POLICIES for name in AVAILABLE[kind] if name != "auto"]
)
def test_every_policy_can_be_tried_without_a_model(kind: str, name: str) -> None:
    assert policy.load(kind, name, {}, **NOBODY) is not None


def test_create_leaves_the_old_model_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GMOE_HOME", str(tmp_path / "home"))
    file, text = write_model(tmp_path / "m.gguf"), tmp_path / "Modelfile"
    text.write_text(f"FROM {file}\n")
    assert CliRunner().invoke(cli, ["create", "m", "-f", str(text)]).exit_code == 0
    before = Library.default().models()
    text.write_text(f"FROM {file}\nSYSTEM other\n# gmoe: miss nonsense\n")
    refused = CliRunner().invoke(cli, ["create", "m", "-f", str(text)])
    assert refused.exit_code == 1 and refused.stderr.startswith("Error: line 3: miss='nonsense' is not available")
    assert Library.default().models() == before


def test_a_template_that_cannot_be_used_hides_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GMOE_HOME", str(tmp_path / "home"))
    text = tmp_path / "Modelfile"
    text.write_text(f'FROM {write_model(tmp_path / "m.gguf")}\nTEMPLATE {{{{ template "x" }}}}\n')
    made = CliRunner().invoke(cli, ["create", "m", "-f", str(text)])
    warning = (
        "warning: the TEMPLATE cannot be used, the GGUF's chat template will be: line 1 of the template: template is"
    )
    assert made.exit_code == 0 and made.stderr.startswith(warning)
    entry = Catalog(Library.default()).find("m")
    assert summary(entry)["capabilities"] == ["completion"]
    assert show(entry, {"model": "m"})["template"] == '{{ template "x" }}'


def test_a_twin_and_a_trace_are_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GMOE_HOME", str(tmp_path / "home"))
    model, other = write_model(tmp_path / "m.gguf"), write_model(tmp_path / "other.gguf", seed=1)
    twin(model, tmp_path / "m-twin.gguf", "Q4_0")
    twin(other, tmp_path / "other-twin.gguf", "Q4_0")
    heads = {}
    for name, file in (("m", model), ("other", other)):
        with GGUFFile.open(file) as opened:
            n_layer = int(opened.metadata["qwen3moe.block_count"])
            head = heads[name] = header(opened, ExpertLayout(opened, n_layer, 8), n_layer)
        recorder = Recorder(head)
        recorder.begin_step(np.zeros(3, np.int32), np.zeros(3, np.int8), np.arange(3))
        for layer in range(n_layer):
            recorder.record(layer, np.array([[0, 1], [2, 3], [4, 5]]), np.full((3, 2), 0.5, np.float32))
        recorder.trace().save(tmp_path / f"{name}.trace")
        (tmp_path / f"{name}.csv").write_text("".join(to_csv(recorder.trace())))
    lines = (tmp_path / "m.csv").read_text().splitlines()
    (tmp_path / "bare.csv").write_text(
        "\n".join(line.split(',"')[0].removesuffix(",header").rstrip(",") for line in lines)
    )
    (tmp_path / "broken.csv").write_text("\n".join(lines[:-1]))
    text = tmp_path / "Modelfile"
    for setting, sentence in (
        ("twin m-twin.gguf", ""),
        ("trace m.trace", ""),
        ("twin m.gguf", "m.gguf: gmoe.twin.fingerprint: missing: the file is no twin"),
        ("twin other-twin.gguf", "other-twin.gguf: gmoe.twin.fingerprint"),
        ("twin Modelfile", "Modelfile is not a valid GGUF file"),
        ("trace other.trace", "other.trace: a trace of another model (other.gguf)"),
        ("trace m.gguf", "m.gguf: not a routing trace, or a damaged one"),
        ("trace none", "trace none: there is no such file"),
        ("trace m.csv", ""),
        ("trace bare.csv", ""),
        ("trace other.csv", "a trace of another model"),
        ("trace broken.csv", "not a whole trace of `gmoe trace export`"),
    ):
        text.write_text(f"FROM m.gguf\n# gmoe: miss hobbit\n# gmoe: {setting}\n")
        made = CliRunner().invoke(cli, ["create", "m", "-f", str(text)])
        assert (made.exit_code, sentence in made.stderr) == (1 if sentence else 0, True), made.stderr
        assert ("copying" in made.stderr) == (not sentence)
        if not sentence and setting.startswith("trace"):
            packed = TraceFile(model, find("m").options().trace, heads["m"]).trace
            assert packed is not None and len(packed) == 6


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"template": "{{ .System }}\n{{ if .Prompt }}"}, "line 2 of the template: {{ if }} has no {{ end }}"),
        ({"parser": "klingon"}, "PARSER klingon is not supported; supported: cohere, deepseek,"),
        ({"parameters": {"num_thread": 513}}, "num_thread: threads is 513; it must be"),
        ({"parameters": {"top_p": -3}}, "top_p is -3.0; it must be between 0 and 1"),
        ({"parameters": {"top_k": "many"}}, "top_k must be a whole number, not 'many'"),
        ({"parameters": {"stop": ["a", ""]}}, "stop must be a list of texts"),
    ],
)
def test_the_server_refuses_it_too(body: dict[str, object], sentence: str) -> None:
    with pytest.raises(Refused) as refused:
        recipe(CreateBody.model_validate({"model": "x", "from": "y", **body}))
    assert refused.value.status == 400 and refused.value.text.startswith(sentence)


def test_a_model_made_elsewhere_is_refused_by_the_parameter_s_name() -> None:
    package = Package(Path("m.gguf"), Modelfile((Command("parameter", "513", "num_thread"),)))
    with pytest.raises(ValueError, match="^num_thread: threads is 513; it must be at most 512$"):
        package.options()


def test_what_ollama_takes_for_automatic_is_automatic() -> None:
    names = {"num_ctx": "-1", "num_thread": "-1", "num_predict": "0", "seed": "-1", "top_k": "-1", "top_p": "1.5"}
    package = Package(
        Path("m.gguf"), Modelfile(tuple(Command("parameter", value, key) for key, value in names.items()))
    )
    assert (package.options().context, package.options().threads) == (0, 0)
    assert package.sampling == {"top_k": 0, "top_p": 1.0}


def test_an_unknown_architecture_is_told_before_the_keys_that_it_lacks(tmp_path: Path) -> None:
    data = write_model(tmp_path / "m.gguf").read_bytes().replace(b"qwen3moe", b"cogitoxx")
    path = tmp_path / "strange.gguf"
    path.write_bytes(data.replace(b"cogitoxx.block_count", b"cogitoxx.blockscount"))
    text = tmp_path / "text"
    text.write_text("one two three " * 20)
    prune = ["prune", path, "x", "--keep", "1", "-f", text]
    for arguments in (["plan", path], ["pack", path, "x"], ["twin", path, "-o", "x"], prune):
        result = CliRunner().invoke(cli, [str(word) for word in arguments])
        assert "general.architecture: 'cogitoxx'; supported: " in result.stderr, result.stderr


def test_knobs_leave_with_their_policy_and_others_stay() -> None:
    text = "FROM x\n# gmoe: miss hobbit\n# gmoe: route adaptive_k\n"
    text += "# gmoe: policy.t1 0.5\n# gmoe: policy.t2 0.8\n# gmoe: policy.threshold 0.1"
    package = Package(Path(), parse_modelfile(text))
    assert options_to_load(package).policy == {"t1": 0.5, "t2": 0.8, "threshold": 0.1}
    assert options_to_load(package, RuntimeOptions(miss="load")).policy == {"threshold": 0.1}
    assert options_to_load(package, RuntimeOptions().insisting(["miss"])).policy == {"threshold": 0.1}
    assert options_to_load(package, RuntimeOptions(policy={"t2": 0.9})).policy == {
        "t1": 0.5, "t2": 0.9, "threshold": 0.1,
    }  # fmt: skip
    assert options_to_load(package, RuntimeOptions().insisting(["quality"])) == RuntimeOptions()
    assert options_to_load(package, RuntimeOptions(quality="high", miss="skip")).miss == "skip"  # refused by loading
    merged = Package(Path(), parse_modelfile("FROM x\n# gmoe: miss merged\n# gmoe: policy.share 0.3"))
    assert options_to_load(merged, RuntimeOptions(miss="twin")).policy == {}  # whose share is another
    both = options_to_load(package, RuntimeOptions(miss="load", policy={"t1": 0.9}))
    assert both.policy == {"t1": 0.9, "threshold": 0.1}  # refused where it is loaded, since the user says it
