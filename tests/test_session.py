"""`/save` and `/load` of the chat prompt, on tiny models and a library of their own."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gmoe.cli.main import cli
from gmoe.cli.prompt import Chat
from gmoe.cli.session import Models
from gmoe.library.create import modelfile_of
from gmoe.library.manifest import Library
from gmoe.library.modelfile import Modelfile
from gmoe.library.name import ModelName
from gmoe.options import RuntimeOptions
from tests.factory import write_model

Captured = pytest.CaptureFixture[str]
GIVEN = {"max_tokens": 3, "temperature": 0.0}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("GMOE_HOME", str(tmp_path / "home"))
    return str(write_model(tmp_path / "tiny.gguf"))


@pytest.fixture
def chat(file: str) -> Iterator[Chat]:
    chat = opened(file, **GIVEN)
    yield chat
    chat.close()


def opened(model: str, system: str | None = None, **given: Any) -> Chat:
    models = Models(RuntimeOptions(context=256), given)
    llm, params, _ = models.open(model)
    chat = Chat(llm, params, system)
    chat.keep(model, models)
    return chat


def type_in(chat: Chat, *lines: str) -> None:
    for line in lines:
        assert chat.line(line)


def kept(name: str) -> Modelfile:
    library = Library.default()
    return modelfile_of(library, library.resolve(ModelName.parse(name)))


def test_a_saved_session_goes_on_where_it_was(chat: Chat, capsys: Captured) -> None:
    type_in(chat, "/set system lo", "/set parameter stop zz yy", "hello", "/save mine")
    said = chat.messages[1]["content"]
    assert "Created new model 'mine'\n" in capsys.readouterr().out
    own = kept("mine")
    assert own.parameters == {"num_predict": 3, "temperature": 0.0, "stop": ["zz", "yy"]}
    assert own.last("system") == "lo" and own.messages == chat.messages
    type_in(chat, "and")
    answer = chat.messages[-1]["content"]
    capsys.readouterr()
    type_in(chat, "/load mine")
    assert capsys.readouterr().out == f"Loading model 'mine'\n>>> hello\n{said}\n\n"
    assert (chat.messages, chat.system, chat.params.stop) == ([], None, ("zz", "yy"))
    type_in(chat, "and")
    assert chat.messages[-1]["content"] == answer
    result = CliRunner().invoke(cli, ["run", "mine", "and"])
    assert (result.exit_code, result.stdout) == (0, answer + "\n")


def test_saving_again_keeps_nothing_of_what_stood_under_the_name(chat: Chat, capsys: Captured) -> None:
    type_in(chat, "hello", "/set parameter top_k 3", "/save mine", "/load mine", "and", "/save mine")
    assert [message["role"] for message in kept("mine").messages] == ["user", "assistant"] * 2
    assert kept("mine").parameters["top_k"] == 3
    type_in(chat, "/load mine", "/set parameter top_k 40", "/set parameter num_predict -1", "/save other")
    assert kept("other").parameters == {"num_predict": -1, "temperature": 0.0, "top_k": 40}
    assert len(kept("other").messages) == 4
    type_in(chat, "more", "/clear", "/save other")
    assert len(kept("other").messages) == 4
    assert not capsys.readouterr().err


def test_what_a_modelfile_brings_stays(chat: Chat, file: str, tmp_path: Path) -> None:
    text = f"FROM {file}\nTEMPLATE {{{{ .Prompt }}}}!\nLICENSE mit\nSYSTEM lo\nPARAMETER num_ctx 128\nPARSER qwen3\n"
    (tmp_path / "Modelfile").write_text(text + "# gmoe: max_sequences 2\nMESSAGE user he\nMESSAGE assistant o\n")
    made = CliRunner().invoke(cli, ["create", "base", "-f", str(tmp_path / "Modelfile")])
    assert made.exit_code == 0, made.stderr
    type_in(chat, "/load base", "/set system hello", "hello", "/save grown")
    own, base = kept("grown"), kept("base")
    for name in ("from", "template", "license", "parser"):
        assert own.values(name) == base.values(name) != []
    assert (own.last("system"), own.settings) == ("hello", base.settings)
    assert own.parameters == {"num_ctx": 128} | {"num_predict": 3, "temperature": 0.0}
    assert own.messages == [*base.messages, *chat.messages]


def test_a_file_is_copied_once(chat: Chat, file: str) -> None:
    type_in(chat, "/save one")
    Path(file).rename(file + ".away")
    type_in(chat, "hello", "/save two")
    assert kept("two").values("from") == kept("one").values("from") and len(kept("two").messages) == 2


def test_what_has_no_place_in_a_modelfile_is_said(chat: Chat, capsys: Captured) -> None:
    type_in(chat, "/set think", "/set parameter samplers top_k", "/set parameter logprobs 0", "/save mine")
    warning, note = capsys.readouterr().err.splitlines()
    assert note == "Note: a Modelfile has no place for samplers, logprobs, think"
    assert warning.startswith('warning: model "') and warning.endswith('" does not support thinking output')


def test_the_flags_of_the_command_count_for_every_model(chat: Chat, file: str) -> None:
    type_in(chat, "/set system lo", "/set parameter num_predict 9", "/save mine")
    with_flags = opened(file, "hello", temperature=0.5)
    type_in(with_flags, "/load mine")
    assert (with_flags.params.temperature, with_flags.params.max_tokens, with_flags.system) == (0.5, 9, "hello")
    assert with_flags.llm.context == 256
    with_flags.close()


def test_a_model_that_cannot_be_loaded_leaves_the_session_as_it_was(
    chat: Chat, tmp_path: Path, capsys: Captured
) -> None:
    type_in(chat, "hello")
    before, llm = list(chat.messages), chat.llm
    type_in(chat, "/load nobody")
    assert (
        chat.llm is llm
        and "model 'nobody:latest' not found; gmoe pull nobody would fetch it" in capsys.readouterr().err
    )
    (tmp_path / "broken one.gguf").write_bytes(b"GGUF")
    type_in(chat, f"/load {tmp_path / 'broken one.gguf'}")
    assert "broken one.gguf is not a valid GGUF file" in capsys.readouterr().err
    assert chat.messages == before
    type_in(chat, "and")
    assert len(chat.messages) == 4 and chat.messages[-1]["content"]


def test_without_any_model_the_session_ends(chat: Chat, file: str, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    Path(file).rename(file + ".away")
    assert not chat.line(f"/load {tmp_path / 'broken.gguf'}")
    assert capsys.readouterr().err.count("Error: ") == 1


def test_wrong_names_are_one_sentence(chat: Chat, capsys: Captured) -> None:
    type_in(chat, "/save", "/load", "/load a b", "/save ://")
    heard = capsys.readouterr()
    assert heard.out == "Usage: /save NAME\nUsage: /load NAME\n"
    assert heard.err.startswith("Error: 'a b' is not a model name") and heard.err.count("\n") == 2
    assert "mine" not in str(Library.default().models())


def test_a_grammar_that_cannot_be_used_is_wrong_usage(file: str) -> None:
    for flags, said in (
        ("--grammar=root", "the grammar cannot be used: "),
        ('--json-schema={"type": 3}', "type must be a string"),
    ):
        refused = CliRunner().invoke(cli, ["run", file, "hi", flags])
        assert refused.exit_code == 2 and said in refused.stderr, refused.stderr
