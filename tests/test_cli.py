"""The command line: exit status, streams, and the chat prompt."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gmoe.cli.main import cli
from gmoe.cli.prompt import Chat
from gmoe.engine.sampling import SamplingParams
from gmoe.llm import TextEvent
from tests.factory import write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("cli") / "tiny.gguf", quant="Q8_0")


def invoke(*args: str, **more: Any) -> Any:
    return CliRunner().invoke(cli, [str(arg) for arg in args], **more)


def test_help_and_show_import_no_torch(model: Path) -> None:
    for args in (["--help"], ["show", str(model)]):
        code = f"import sys; from gmoe.cli.main import cli; cli({args!r}, standalone_mode=False); "
        done = subprocess.run(
            [sys.executable, "-c", code + "assert 'torch' not in sys.modules"], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert "Usage: " in done.stdout or "architecture" in done.stdout


def test_run_answers_on_standard_output(model: Path) -> None:
    first = invoke("run", model, "hello", "--max-tokens", "6", "--temperature", "0", "--verbose")
    again = invoke("run", model, "--max-tokens", "6", "--temperature", "0", input="hello\n")
    assert first.exit_code == 0
    assert first.stdout == again.stdout and first.stdout.strip()
    assert "eval count:           6 token(s)" in first.stderr
    assert "hits, 0 misses" in first.stderr


@pytest.mark.parametrize(
    ("args", "status", "what"),
    [
        (["run", "no-such.gguf", "hi"], 1, "Error: no-such.gguf cannot be read"),
        (["run", "no-such", "hi"], 1, "Error: no-such is neither a file nor a model of the library"),
        (["run", "MODEL", "hi", "--evict", "lru"], 1, "Error: evict='lru' is not available"),
        (["run", "MODEL", "hi", "--top-p", "7"], 1, "Error: top_p is 7.0; it must lie between 0 and 1"),
        (["run", "MODEL", "hi", "--no-such-flag"], 2, "No such option"),
        (["run", "MODEL", "hi", "--temperature", "warm"], 2, "'warm' is not a valid float"),
        (["show", "no-such.gguf"], 1, "Error: no-such.gguf cannot be read: No such file or directory"),
        (["show", "MODEL", "--template", "--license"], 2, "only one of"),
        (["nonsense"], 2, "No such command"),
    ],
)
def test_errors_are_one_sentence(model: Path, args: list[str], status: int, what: str) -> None:
    done = invoke(*[str(model) if arg == "MODEL" else arg for arg in args])
    assert (done.exit_code, done.stdout) == (status, "")
    assert what in done.stderr and "Traceback" not in done.stderr
    assert status == 2 or done.stderr.count("\n") == 1


def test_standard_input_must_be_utf8(model: Path) -> None:
    done = invoke("run", model, input=io.BytesIO(b"a\xffb"))
    assert done.exit_code == 1
    assert done.stderr == "Error: standard input is not UTF-8: byte 1 is 0xff\n"


def test_a_truncated_file_is_one_sentence(model: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(model.read_bytes()[:-100])
    done = invoke("run", cut, "hi")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "it ends inside the tensor" in done.stderr and "Traceback" not in done.stderr


def test_show_lists_the_experts(model: Path) -> None:
    done = invoke("show", model, "-v")
    assert done.exit_code == 0
    for line in (
        "architecture        qwen3moe",
        "8 a layer, 3 used",
        "2 of 2 routed",
        "Q8_0/Q8_0/Q8_0, 6.4 KiB an expert",
    ):
        assert line in done.stdout
    assert "blk.1.ffn_down_exps.weight" in done.stdout
    assert "im_start" in invoke("show", model, "--template").stdout


class Echo:
    """A model that says what it was asked, or is interrupted."""

    notices: list[str] = []
    stats = {"prompt_tokens": 1, "prompt_seconds": 1.0, "generated_tokens": 3, "decode_seconds": 1.0, "actions": {}}

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.interrupt = False

    def chat(self, messages: list[dict[str, str]], params: SamplingParams, **template: Any):  # type: ignore[no-untyped-def]
        self.asked.append((messages, params, template))
        yield TextEvent("you said ", 1)
        if self.interrupt:
            raise KeyboardInterrupt
        yield TextEvent(messages[-1]["content"], 2, "stop")


@pytest.fixture
def chat() -> Chat:
    return Chat(Echo(), SamplingParams(), None, {}, False)


def test_the_prompt_keeps_the_conversation(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    for line in ("hello", "", '"""two', 'lines"""', "/clear", "/set nohistory", "again"):
        assert chat.line(line)
    assert capsys.readouterr().out == ("you said hello\nyou said two\nlines\nCleared session context\nyou said again\n")
    messages = [asked[0] for asked in chat.llm.asked]
    assert [len(m) for m in messages] == [1, 3, 1]
    assert not chat.line("/bye")


def test_the_prompt_s_settings(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    for line in (
        "/set parameter temperature 0",
        "/set parameter stop a b",
        '/set system """be',
        'kind"""',
        "/set nothink",
    ):
        assert chat.line(line)
    chat.line("hi")
    messages, params, template = chat.llm.asked[0]
    assert messages[0] == {"role": "system", "content": "be\nkind"}
    assert (params.temperature, params.stop, template) == (0.0, ("a", "b"), {"enable_thinking": False})
    chat.line("/set parameter top_p 7")
    chat.line("/set parameter wings 2")
    chat.line("/show system")
    chat.line("/what")
    out, err = capsys.readouterr()
    assert "top_p is 7.0" in err and "unknown parameter 'wings'" in err
    assert "be\nkind" in out and "Unknown command '/what'" in out


def test_an_interrupt_stops_the_answer_and_not_the_program(chat: Chat) -> None:
    chat.llm.interrupt = True
    assert chat.line("hi")
    chat.llm.interrupt = False
    assert chat.line("hi")
