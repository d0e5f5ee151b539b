"""The chat prompt, fed lines without a terminal."""

from pathlib import Path

import pytest
from prompt_toolkit import PromptSession
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from gmoe.cli.prompt import HELP, Chat, _history, interact
from gmoe.engine.sampling import SamplingParams
from gmoe.gguf.file import GGUFFile
from gmoe.library.modelfile import Command, Modelfile
from gmoe.tokenizer.thinking import think_values
from tests.factory import write_model
from tests.fake_llm import FakeLLM

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def llm() -> FakeLLM:
    return FakeLLM()


@pytest.fixture
def chat(llm: FakeLLM) -> Chat:
    return Chat(llm, SamplingParams())


def asked(llm: FakeLLM) -> list[str]:
    return [messages[-1]["content"] for _, messages, *_ in llm.asked]


def test_a_message_is_answered_and_remembered(chat: Chat, llm: FakeLLM, capsys: Captured) -> None:
    assert chat.line("Hi") and chat.line("And?")
    assert capsys.readouterr().out == "Hello there\n\n" * 2
    roles = [(m["role"], m["content"]) for m in llm.asked[1][1]]
    assert roles == [("user", "Hi"), ("assistant", "Hello there"), ("user", "And?")]


def test_empty_lines_ask_nothing(chat: Chat, llm: FakeLLM) -> None:
    for line in ("", "   ", '""""""', '"""', "", '"""'):
        assert chat.line(line)
    assert not llm.asked and not chat.continues


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['"""one', "two", 'three"""'], "one\ntwo\nthree"),
        (['"""', "one", "", "two", '"""'], "one\n\ntwo"),
        (['"""one"""'], "one"),
        (['"""one\ntwo"""'], "one\ntwo"),
        (['"""', "/bye", '"""'], "/bye"),
    ],
)
def test_messages_of_several_lines(chat: Chat, llm: FakeLLM, lines: list[str], message: str) -> None:
    for n, line in enumerate(lines):
        assert chat.line(line)
        assert chat.continues == (n + 1 < len(lines))
    assert asked(llm) == [message]


def test_ctrl_c_stops_the_answer_and_not_the_program(chat: Chat, llm: FakeLLM, capsys: Captured) -> None:
    llm.pieces = ["Once", KeyboardInterrupt()]
    assert chat.line("Tell")
    assert capsys.readouterr().out == "Once\n\n"
    assert llm.answers_closed == 1
    llm.pieces = ["Yes"]
    assert chat.line("Go on")
    assert llm.asked[1][1][1] == {"role": "assistant", "content": "Once"}


def test_ctrl_c_at_the_prompt(chat: Chat, capsys: Captured) -> None:
    chat.interrupt()
    assert capsys.readouterr().out == "\nUse Ctrl + d or /bye to exit.\n"
    chat.line('"""half')
    chat.interrupt()
    assert not chat.continues and not capsys.readouterr().out


def test_an_error_is_one_sentence_and_the_chat_goes_on(chat: Chat, llm: FakeLLM, capsys: Captured) -> None:
    llm.pieces = [ValueError("the prompt has 9 tokens,\nthe context 8")]
    assert chat.line("long")
    assert capsys.readouterr().err == "Error: the prompt has 9 tokens, the context 8\n"
    assert chat.messages == []


def test_clear_forgets_the_messages_and_keeps_the_system(chat: Chat, llm: FakeLLM, capsys: Captured) -> None:
    for line in ("/set system Be brief.", "Hi", "/clear", "Hi"):
        chat.line(line)
    assert "Set system message.\n" in capsys.readouterr().out
    assert [[m["role"] for m in messages] for _, messages, *_ in llm.asked] == [["system", "user"]] * 2


def test_a_system_message_of_several_lines(chat: Chat) -> None:
    for line in ('/set system """Be brief.', 'Be kind."""'):
        chat.line(line)
    assert chat.system == "Be brief.\nBe kind."
    chat.line('/set system """As pasted:\n\n  - be  brief"""')
    assert chat.system == "As pasted:\n\n  - be  brief"


@pytest.mark.parametrize("line", ["/bye", "/exit"])
def test_leaving(chat: Chat, line: str) -> None:
    assert not chat.line(line)


@pytest.mark.parametrize("line", ["/?", "/help"])
def test_help(chat: Chat, line: str, capsys: Captured) -> None:
    assert chat.line(line)
    assert capsys.readouterr().out == HELP + "\n"


def test_the_keys_and_the_models_are_listed(
    chat: Chat, capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GMOE_HOME", str(tmp_path))
    for line in ("/? shortcuts", "/ls", "/list"):
        assert chat.line(line)
    out = capsys.readouterr().out
    assert "Ctrl + w " in out and out.count("\nNAME ") == out.count("\ndemo:latest ") == 2


def test_unknown_commands_are_not_sent_to_the_model(chat: Chat, llm: FakeLLM, capsys: Captured) -> None:
    for line in ("/dance", "/set", "/set parameter top_k", "/show", "/show everything"):
        assert chat.line(line)
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "Unknown command '/dance'. Type /? for help"
    assert [line.split()[1] for line in out[1:]] == ["/set", "/set", "/show", "/show"]
    assert not llm.asked


def test_parameters(chat: Chat, llm: FakeLLM, capsys: Captured) -> None:
    for line in ("temperature 0", "num_predict 5", "top_k 3", "stop a b", "seed 9", "samplers top_k temperature"):
        chat.line(f"/set parameter {line}")
    samplers = ("top_k", "temperature")
    assert chat.params == SamplingParams(5, temperature=0, top_k=3, stop=("a", "b"), seed=9, samplers=samplers)
    assert "Set parameter 'num_predict' to '5'\n" in capsys.readouterr().out
    chat.line("Hi")
    assert llm.asked[0][2] == chat.params
    chat.line("/set parameter num_predict -1")
    chat.line("/set parameter seed -1")
    assert chat.params.max_tokens is None and chat.params.seed is None


@pytest.mark.parametrize(
    ("line", "complaint"),
    [("heat 1", "unknown parameter 'heat'"), ("top_k 1.5", "top_k is '1.5'"), ("top_p 2", "top_p is 2.0")],
)
def test_bad_parameters_change_nothing(chat: Chat, line: str, complaint: str, capsys: Captured) -> None:
    chat.line(f"/set parameter {line}")
    assert chat.params == SamplingParams()
    assert capsys.readouterr().err.startswith(f"Error: {complaint}")


@pytest.mark.parametrize(
    ("line", "template"),
    [
        ("/set think", think_values(True)),
        ("/set think high", think_values("high")),
        ("/set nothink", think_values(False)),
    ],
)
def test_thinking_reaches_the_template(chat: Chat, llm: FakeLLM, line: str, template: dict[str, object]) -> None:
    chat.line(line)
    chat.line("Hi")
    assert llm.asked[0][3] == template


def test_a_format_is_followed_until_it_is_not(chat: Chat, llm: FakeLLM, capsys: Captured) -> None:
    for line in ("/set format json", "Hi", "/set think", "Hi", "/set noformat", "Hi", '/set format {"type": "string"}'):
        chat.line(line)
    chat.line("/set format yaml")
    chat.line("Hi")
    off, on = think_values(False), think_values(True)
    assert [asked[3] for asked in llm.asked] == [off, on, on, on]
    followed = [({"type": "object"}, None), ({"type": "object"}, "</think>"), (None, None)]
    assert [(asked[2].schema, asked[2].grammar_after) for asked in llm.asked] == [
        *followed,
        ({"type": "string"}, "</think>"),
    ]
    heard = capsys.readouterr()
    assert "Set format to 'json' mode.\n" in heard.out and "Disabled format.\n" in heard.out
    assert heard.err.startswith("Error: json_schema is 'yaml'; it must be a JSON schema")


def test_verbose_and_wordwrap(chat: Chat, llm: FakeLLM, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "7")
    chat.line("/set verbose")
    chat.line("/set wordwrap")
    capsys.readouterr()
    chat.line("Hi")
    heard = capsys.readouterr()
    assert heard.out == "Hello \nthere\n\n" and "eval rate:" in heard.err
    chat.line("/set quiet")
    chat.line("/set nowordwrap")
    capsys.readouterr()
    chat.line("Hi")
    assert capsys.readouterr() == ("Hello there\n\n", "")


def test_raw_continues_each_line_by_itself(llm: FakeLLM) -> None:
    chat = Chat(llm, SamplingParams(), raw=True)
    chat.line("Once")
    chat.line("Twice")
    assert [call[:2] for call in llm.asked] == [("generate", "Once"), ("generate", "Twice")]


def test_show(chat: Chat, llm: FakeLLM, tmp_path: Path, capsys: Captured) -> None:
    with GGUFFile.open(write_model(tmp_path / "tiny.gguf")) as file:
        llm.file = file  # type: ignore[assignment]
        for what in ("info", "modelfile", "parameters", "system", "template", "license"):
            assert chat.line(f"/show {what}")
        llm.modelfile = Modelfile((Command("license", "MIT"),))
        assert chat.line("/show license")
    out = capsys.readouterr().out
    for text in (
        "qwen3moe",
        "dry_sequence_breakers ('\\n'",
        "No system message",
        "<|im_start|>",
        "No license",
        "\nFROM ",
        "\nMIT\n",
    ):
        assert text in out


def test_history_is_kept_while_it_is_wanted(chat: Chat, tmp_path: Path) -> None:
    history = _history(tmp_path / "home" / "history", chat)
    history.append_string("kept")
    chat.line("/set nohistory")
    history.append_string("not kept")
    text = (tmp_path / "home" / "history").read_text()
    assert "+kept" in text and "not kept" not in text


def test_without_a_place_for_it_there_is_no_history_file(chat: Chat, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "home").write_text("a file, not a folder")
    assert isinstance(PromptSession(history=_history(tmp_path / "home" / "history", chat)), PromptSession)
    assert capsys.readouterr().err.startswith("Note: the history is not kept")


@pytest.mark.parametrize(
    ("typed", "messages"),
    [
        ("Hi\r/bye\r", ["Hi"]),
        ("Hi\r\x04", ["Hi"]),  # Ctrl-D
        ("half\x03Hi\r\x03/bye\r", ["Hi"]),  # Ctrl-C clears the line, then only says how to leave
        ('"""one\rtwo"""\r\x04', ["one\ntwo"]),
        ("\x1b[200~one\ntwo\x1b[201~\r\x04", ["one\ntwo"]),  # a paste in brackets
    ],
)
def test_keys(
    chat: Chat, llm: FakeLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str, messages: list[str]
) -> None:
    monkeypatch.setenv("GMOE_HOME", str(tmp_path))
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        keys.send_text(typed)
        interact(chat)
    assert asked(llm) == messages
