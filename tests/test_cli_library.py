"""The library's commands: Ollama's words and columns, one sentence for an error."""

import os
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from test_library import write_gguf

from gmoe.cli.library import age, human_bytes
from gmoe.cli.main import cli
from gmoe.library import demo
from gmoe.library.manifest import Library


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
        (("pull", "127.0.0.1:9/a/b", "--insecure"), "Error: pull model manifest: 127.0.0.1:9"),
    ],
)
def test_errors(home: Path, arguments: tuple[str, ...], sentence: str) -> None:
    (home / "bad").write_text("NONSENSE x")
    result = gmoe(*arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1].startswith(sentence)


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
