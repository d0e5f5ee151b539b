"""The library's commands: Ollama's words and columns, one sentence for an error."""

import os
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fake_registry import serving
from test_library import write_gguf

from gmoe.cli.library import age, human_bytes
from gmoe.cli.main import cli
from gmoe.library import demo
from gmoe.library.manifest import OLLAMA_TYPE, Library, Manifest
from gmoe.library.name import ModelName
from tests.factory import write_model


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GMOE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "none"))
    monkeypatch.setattr(demo, "DEMO", tmp_path / "none")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def gmoe(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def test_a_model_s_life(home: Path) -> None:
    write_gguf(home / "m.gguf")
    (home / "Modelfile").write_text("FROM m.gguf\nPARAMETER mirostat 1\n")
    created = gmoe("create", "Mine")
    assert created.exit_code == 0 and created.stdout == ""
    assert created.stderr.splitlines()[0] == "warning: line 2: parameter mirostat is deprecated"
    assert created.stderr.splitlines()[-1] == "success"
    assert gmoe("cp", "mine", "other:v2").stdout == "copied 'mine' to 'other:v2'\n"
    library, then = Library.default(), time.time() - 7200
    for path in (library.root / "manifests").rglob("*"):
        if path.is_file():
            os.utime(path, (then, then))
    (_, manifest), _ = library.models()
    size, identity = human_bytes(manifest.size), manifest.digest[:12]
    assert gmoe("list").stdout.splitlines() == [
        f"NAME           ID              {'SIZE'.ljust(len(size))}    MODIFIED",
        f"Mine:latest    {identity}    {size}    2 hours ago",
        f"other:v2       {identity}    {size}    2 hours ago",
    ]
    assert len(gmoe("ls", "OTHER").stdout.splitlines()) == 2
    assert gmoe("rm", "Mine", "other:v2").stdout == "deleted 'Mine'\ndeleted 'other:v2'\n"
    assert gmoe("list").stdout == "NAME    ID    SIZE    MODIFIED\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("rm", "none"), "Error: model 'none:latest' not found"),
        (("cp", "none", "x"), "Error: model 'none:latest' not found"),
        (("cp", "../x", "y"), "Error: '../x' is not a model name: its namespace is '..'"),
        (("create", "x"), "Error: Modelfile: No such file or directory"),
        (("create", "x", "-f", "bad"), "Error: line 1: command must be one of"),
        (("create", "x", "-f", "/dev/zero"), "Error: /dev/zero is no Modelfile: it has more than 64 MiB"),
        (("create", "x", "-f", "."), "Error: .: Is a directory"),
        (
            ("create", "x", "-f", "odd"),
            "Error: FROM \\x1b[2Jm\\u202egguf\\x00: there is no such file, and it is no name",
        ),
        (("create", "x", "-f", "long"), "Error: line 2: PARSER 99999999999999"),
        (("pull", "127.0.0.1:9/a/b", "--insecure"), "Error: pull model manifest: 127.0.0.1:9"),
    ],
)
def test_errors(home: Path, arguments: tuple[str, ...], sentence: str) -> None:
    (home / "bad").write_text("NONSENSE x")
    (home / "odd").write_text("FROM \x1b[2Jm\u202egguf\0\n")
    (home / "long").write_text(f"FROM x\nPARSER {'9' * 5000}\n")
    result = gmoe(*arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1].startswith(sentence)
    assert len(result.stderr.splitlines()[-1]) < 900 and "" not in result.stderr.splitlines()


def test_wrong_usage(home: Path) -> None:
    assert gmoe("rm").exit_code == 2


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 KB"), (4_700_000_000, "4.7 GB"), (21_300_000, "21 MB")]
)
def test_sizes(size: int, text: str) -> None:
    assert human_bytes(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "Less than a second ago"), (30, "30 seconds ago"), (60, "1 minute ago"), (86400 * 22, "3 weeks ago")],
)
def test_ages(seconds: int, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1e9)
    assert age(1e9 - seconds) == text


def test_show_tells_what_a_model_s_modelfile_says(home: Path) -> None:
    write_model(home / "m.gguf")
    text = 'FROM m.gguf\nSYSTEM """be\nkind\nand brief"""\nPARAMETER stop "<|end|>"\nPARAMETER num_ctx 64\n'
    text += "REQUIRES 0.14.0\n"
    text += "LICENSE MIT\nTEMPLATE {{ if .Tools }}x{{ end }}{{ .Prompt }}\n# gmoe: threads 2\n"
    (home / "Modelfile").write_text(text)
    assert gmoe("create", "mine").exit_code == 0
    shown = gmoe("show", "mine").stdout
    assert '  Parameters\n    stop       "<|end|>"\n    num_ctx    64\n' in shown
    assert "  System\n    be\n    kind\n    ...\n" in shown
    assert "  License\n    MIT\n" in shown and "    requires            0.14.0\n" in shown
    assert "  Settings\n    threads    2\n" in shown and "    tools\n" in shown
    assert gmoe("show", "mine", "--system").stdout == "be\nkind\nand brief\n"
    assert gmoe("show", "mine", "--template").stdout == "{{ if .Tools }}x{{ end }}{{ .Prompt }}\n"
    assert gmoe("show", "mine", "--license").stdout == "MIT\n"
    assert gmoe("show", "mine", "--parameters").stdout == 'stop       "<|end|>"\nnum_ctx    64\n'
    modelfile = gmoe("show", "mine", "--modelfile").stdout
    assert modelfile.startswith('# Modelfile generated by "gmoe show"\n')
    assert "\n# FROM mine\n\n# gmoe: threads 2\nFROM " in modelfile
    (home / "again").write_text(modelfile)
    assert gmoe("create", "again", "-f", "again").exit_code == 0
    assert len({row.split()[1] for row in gmoe("list").stdout.splitlines()[1:]}) == 1
    assert gmoe("show", str(home / "m.gguf"), "--modelfile").stdout.endswith(f"\n\nFROM {home / 'm.gguf'}\n")
    refused = gmoe("show", "mine", "--system", "--license")
    assert refused.exit_code == 2
    words = "only one of '--license', '--modelfile', '--parameters', '--system', or '--template' can be specified"
    assert words in " ".join(refused.stderr.split())


def test_show_takes_a_stand_in_for_a_template_for_none(home: Path) -> None:
    write_model(home / "m.gguf", template="{{ tools }}<think>{{ messages }}")
    (home / "Modelfile").write_text("FROM m.gguf\nTEMPLATE {{ .Prompt }}\nRENDERER lfm2\n")
    assert gmoe("create", "mine").exit_code == 0
    assert gmoe("show", "mine", "--template").stdout == "{{ tools }}<think>{{ messages }}\n"
    shown = gmoe("show", "mine").stdout
    assert "    tools\n" in shown and "    thinking\n" in shown


def test_push_and_pull_from_the_command_line(home: Path) -> None:
    write_gguf(home / "m.gguf")
    (home / "Modelfile").write_text("FROM m.gguf\n")
    with serving() as registry:
        name = f"{registry.host}/me/m"
        assert gmoe("create", name).exit_code == 0
        pushed = gmoe("push", name, "--insecure")
        assert (pushed.exit_code, pushed.stdout) == (0, "")
        assert all(words in pushed.stderr for words in ("retrieving manifest", "pushing manifest", "success"))
        assert gmoe("rm", name).exit_code == 0
        pulled = gmoe("pull", name, "--insecure")
        assert pulled.exit_code == 0 and "writing manifest" in pulled.stderr
        assert gmoe("show", name, "--modelfile").exit_code == 0


def test_create_quantizes(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(home))
    write_model(home / "m.gguf")
    (home / "Modelfile").write_text("FROM m.gguf\nSYSTEM be kind\n")
    created = gmoe("create", "small", "-q", "q8_0")
    assert created.exit_code == 0, created.stderr
    assert "quantizing F32 model to Q8_0" in created.stderr.splitlines()
    (home / "again").write_text("FROM small\nPARAMETER top_k 3\n")
    assert gmoe("create", "smaller", "-f", "again", "-q", "q8_0").exit_code == 0
    library = Library.default()
    (_, small), (_, smaller) = sorted(library.models(), key=lambda model: str(model[0]))
    assert small.of_kind("system") == smaller.of_kind("system") and small.size < (home / "m.gguf").stat().st_size
    assert library.json(smaller.of_kind("params")[0]) == {"top_k": 3}
    assert library.json(small.config)["file_type"] == "Q8_0"
    assert not list(library.root.glob(".join-*"))
    (home / "mine").write_text("FROM ~/m.gguf\n")
    assert gmoe("create", "tilde", "-f", "mine", "-q", "q8_0").exit_code == 0
    adapter = library.put_blob(b"lora", OLLAMA_TYPE + "adapter")
    library.write(ModelName.parse("adapted"), Manifest(small.config, (*small.layers, adapter)))
    (home / "on").write_text("FROM adapted\n")
    adapted = gmoe("create", "x", "-f", "on", "-q", "q8_0")
    assert adapted.exit_code == 1 and "has an adapter, which gmoe cannot apply" in adapted.stderr
    refused = gmoe("create", "x", "-q", "q99")
    assert refused.exit_code == 2 and "q99" in refused.stderr
