"""The command line: what goes to which stream, exit statuses, and what is imported for it."""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext, redirect_stdout, suppress
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from gmoe.cli.answer import Figures, Wrapped, difference, spoken
from gmoe.cli.errors import Group, sentence
from gmoe.cli.main import COMMANDS, cli
from gmoe.cli.options import HELP, runtime_flags, sampling_flags, take
from gmoe.cli.run import run
from gmoe.engine.sampling import SamplingParams
from gmoe.library.find import model_file
from gmoe.library.home import home
from gmoe.options import RuntimeOptions, memory_bytes
from gmoe.tokenizer.parsers.choose import parser_for
from gmoe.tokenizer.thinking import think_values
from tests.factory import write_model
from tests.fake_llm import FakeLLM


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> FakeLLM:
    """A fake model in the place of gmoe.llm.LLM; `loaded` holds the arguments of load."""
    fake, module = FakeLLM(), ModuleType("gmoe.llm")

    def load(path: Path, options: RuntimeOptions, progress: Any = None) -> FakeLLM:
        fake.loaded = (path, options)  # type: ignore[attr-defined]
        return fake

    module.LLM = SimpleNamespace(load=load)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gmoe.llm", module)
    return fake


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    return str(path)


def gmoe(*args: str, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(cli, args, input=stdin)


def test_an_answer_goes_to_standard_output_and_nothing_else_does(llm: FakeLLM, model: str) -> None:
    result = gmoe("run", model, "Hi", "you")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "Hello there\n", "Note: it is a fake\n")
    assert llm.asked == [("chat", [{"role": "user", "content": "Hi you"}], SamplingParams(), {})]
    assert llm.closed and llm.answers_closed == 1


def test_raw_leaves_the_template_out(llm: FakeLLM, model: str) -> None:
    assert gmoe("run", model, "Once", "--raw").exit_code == 0
    assert llm.asked == [("generate", "Once", SamplingParams())]
    assert gmoe("run", model, "Once", "--raw", "--system", "s").exit_code == 2


def test_system_and_thinking_reach_the_template(llm: FakeLLM, model: str) -> None:
    assert gmoe("run", model, "Hi", "--system", "Be brief.", "--no-think").exit_code == 0
    _, messages, _, template = llm.asked[0]
    assert messages[0] == {"role": "system", "content": "Be brief."}
    assert template == think_values(False)
    for flags in ("--think=high Hi", "Hi --think=true", "--think Hi", "Hi -- --think=high"):
        assert gmoe("run", model, *flags.split()).exit_code == 0
    assert [asked[1][-1]["content"] for asked in llm.asked[1:]] == ["Hi", "Hi", "Hi", "Hi --think=high"]
    assert [asked[3] for asked in llm.asked[1:]] == [think_values("high"), think_values(True), think_values(True), {}]
    assert gmoe("run", model, "Hi", "--think=so-so").exit_code == 2
    del llm.file.metadata["tokenizer.chat_template"]
    refused = gmoe("run", model, "Hi", "--think")
    assert refused.exit_code == 1 and f'Error: "{model}" does not support thinking' in refused.stderr and llm.closed


def test_piped_input_is_the_prompt_and_comes_before_the_words(llm: FakeLLM, model: str) -> None:
    gmoe("run", model, stdin="für dich\n")
    gmoe("run", model, "in", "short?", stdin="A text.\n")
    assert [asked[1][0]["content"] for asked in llm.asked] == ["für dich", "A text. in short?"]


@pytest.mark.parametrize(
    ("stdin", "status", "text"),
    [(b"ab\xff", 1, "Error: standard input is not valid UTF-8: byte 2 cannot be read\n"), (b"\n", 2, "is empty")],
)
def test_bad_piped_input_is_one_sentence(llm: FakeLLM, model: str, stdin: bytes, status: int, text: str) -> None:
    result = gmoe("run", model, stdin=stdin)
    assert result.exit_code == status and text in result.stderr and not result.stdout
    assert not llm.asked


def test_verbose_figures_go_to_standard_error(llm: FakeLLM, model: str) -> None:
    result = gmoe("run", model, "Hi", "--verbose")
    assert result.stdout == "Hello there\n"
    lines = dict(line.split(":", 1) for line in result.stderr.splitlines())
    assert lines["prompt eval count"].strip() == "3 token(s)"
    assert lines["prompt eval rate"].strip() == "2.00 tokens/s"
    assert lines["eval count"].strip() == "2 token(s)"
    assert lines["host"].strip() == "hits 8, misses 2"
    assert lines["actions load"].strip() == "count 0, mass 0"


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (ValueError("the prompt\nis too long"), 1, "Error: the prompt is too long\n"),
        (FileNotFoundError(2, "No such file or directory", "part-2"), 1, "Error: part-2: No such file or directory\n"),
        (MemoryError(), 1, "Error: there is not enough memory\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_what_goes_wrong_in_an_answer(llm: FakeLLM, model: str, error: BaseException, status: int, text: str) -> None:
    llm.pieces = ["Hel", error]
    result = gmoe("run", model, "Hi")
    assert (result.exit_code, result.stdout) == (status, "Hel")
    assert result.stderr == "Note: it is a fake\n" + text
    assert llm.closed and llm.answers_closed == 1


def test_what_is_said_of_a_broken_answer_begins_a_line_on_a_terminal(
    llm: FakeLLM, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    llm.pieces = ["Hel ", KeyboardInterrupt()]
    mine, theirs = os.openpty()
    with os.fdopen(theirs, "w") as terminal, redirect_stdout(terminal), suppress(SystemExit):
        cli(["run", model, "Hi"])
    assert os.read(mine, 100) == b"Hel \r\n"
    os.close(mine)


def test_every_field_is_a_flag_with_a_line_of_help() -> None:
    names = {f.name for kind in (RuntimeOptions, SamplingParams) for f in fields(kind)}
    assert names == set(HELP)
    flags = [option for parameter in run.params for option in parameter.opts if isinstance(parameter, click.Option)]
    assert {"--" + name.replace("_", "-") for name in names} <= set(flags)
    assert len(flags) == len(set(flags))


def test_flags_become_options(llm: FakeLLM, model: str) -> None:
    words = "--host-memory 6GiB --miss hobbit --policy t1=0.6 --prefetch activation_matrix --policy scope=request"
    words += " --threads 3 --twin t.gguf --max-tokens 32 --temperature 0 --stop a --stop b --logit-bias 7=-1.5 --seed 4"
    words += " --samplers top_k;typ_p;temp"
    assert gmoe("run", model, "Hi", *words.split()).exit_code == 0
    path, options = llm.loaded  # type: ignore[attr-defined]
    knobs = {"t1": 0.6, "scope": "request"}
    assert path == model
    policies = {"miss": "hobbit", "prefetch": "activation_matrix", "policy": knobs}
    assert options == RuntimeOptions(host_memory="6GiB", **policies, threads=3, twin=Path("t.gguf"))  # type: ignore[arg-type]
    params = {"stop": ("a", "b"), "logit_bias": {7: -1.5}, "seed": 4, "samplers": ("top_k", "typical_p", "temperature")}
    assert llm.asked[0][2] == SamplingParams(32, 0, **params)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["run", "serve", "bench", "perplexity"])
def test_every_runtime_option_is_a_flag(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command and {field.name for field in fields(RuntimeOptions)} <= {one.name for one in command.params}


def test_without_flags_the_defaults_hold() -> None:
    seen: list[object] = []

    @click.command()
    @sampling_flags
    @runtime_flags
    def command(**flags: Any) -> None:
        seen.extend([take(SamplingParams, flags), take(RuntimeOptions, flags)])
        assert not flags

    assert CliRunner().invoke(command, []).exit_code == 0
    assert seen == [SamplingParams(), RuntimeOptions()]
    assert CliRunner().invoke(command, ["--seed", "-1"]).exit_code == 0
    assert seen[2:] == seen[:2]  # any seed
    assert CliRunner().invoke(command, ["--quality", "exact", "--threads", "3"]).exit_code == 0
    assert isinstance(seen[5], RuntimeOptions) and seen[5].insisted == {"quality", "threads"}


@pytest.mark.parametrize(
    "flags",
    [
        "--threads x",
        "--host-memory lots",
        "--max-tokens x",
        "--stop",
        "--policy t1",
        "--logit-bias a=b",
        "--samplers top_q",
        "--nonsense",
    ],
)
def test_wrong_usage_is_status_2(llm: FakeLLM, model: str, flags: str) -> None:
    result = gmoe("run", model, "Hi", *flags.split())
    assert result.exit_code == 2 and "Error: " in result.stderr and not result.stdout
    assert not llm.asked


@pytest.mark.parametrize("args", [("run", "no.gguf", "Hi"), ("show", "no.gguf")])
def test_a_missing_file_is_one_sentence(args: tuple[str, ...]) -> None:
    result = gmoe(*args)
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "Error: no.gguf: there is no such file\n")


@pytest.mark.parametrize(
    "command",
    [
        "quantize MODEL OUT Q4_K_M",
        "pack MODEL OUT",
        "prune MODEL OUT --keep 2 --score random",
        "twin MODEL -o OUT",
        "imatrix MODEL -f TEXT -o OUT -c 8 --chunks 1",
        "trace record MODEL -f TEXT --limit 1 -o OUT",
        "perplexity MODEL -f TEXT -c 8 --chunks 1 --kl-divergence-base OUT",
    ],
)
def test_no_command_writes_over_the_model_that_it_reads(tmp_path: Path, command: str) -> None:
    model = str(write_model(tmp_path / "tiny.gguf"))
    text, other = tmp_path / "text.txt", tmp_path / "other.gguf"
    text.write_text("hello and " * 20)
    other.symlink_to(model)
    before = Path(model).read_bytes()
    for out in (model, str(other)):
        words = {"MODEL": model, "OUT": out, "TEXT": str(text)}
        result = gmoe(*(words.get(word, word) for word in command.split()))
        assert result.exit_code == 2 and "is the model itself; write to another file" in result.stderr
    assert Path(model).read_bytes() == before and other.is_symlink()
    if "TEXT" in command:
        words["OUT"] = str(text)
        result = gmoe(*(words.get(word, word) for word in command.split()))
        assert result.exit_code == 2 and f"{text} is what is read; write to another file" in result.stderr


def test_a_model_is_a_path_or_a_name(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GMOE_HOME", str(tmp_path / "home"))
    assert model_file(model) == Path(model)
    with pytest.raises(ValueError, match="is a folder"):
        model_file(str(tmp_path))
    with pytest.raises(ValueError, match="'' is not a model name"):
        model_file("")
    with pytest.raises(ValueError, match="~nobody-here/m.gguf: there is no such file"):
        model_file("~nobody-here/m.gguf")
    with pytest.raises(ValueError, match="/dev/null: it is no regular file"):
        model_file("/dev/null")
    with pytest.raises(ValueError, match="'nobody:latest' not found"):
        model_file("nobody")
    monkeypatch.setenv("HOME", str(tmp_path / "mine"))
    monkeypatch.setenv("GMOE_HOME", "~/things")
    assert home() == tmp_path / "mine/things"
    monkeypatch.setenv("GMOE_HOME", "~nobody-here")
    with pytest.raises(ValueError, match="~nobody-here: there is no such home folder; GMOE_HOME may"):
        model_file("nobody")


def test_every_command_in_the_table_that_is_there_can_be_called() -> None:
    context = click.Context(cli)
    names = cli.list_commands(context)
    assert names[:2] == ["run", "show"]
    for name in names:
        assert isinstance(cli.get_command(context, name), click.Command)
    assert gmoe("nonsense").exit_code == 2


def test_a_command_whose_module_is_not_there_does_not_appear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "dream", ("gmoe.cli.dream:dream", "Dream."))
    assert "dream" not in gmoe("--help").stdout
    assert gmoe("dream").exit_code == 2


def test_help_names_every_command() -> None:
    result = gmoe("--help")
    assert result.exit_code == 0
    assert all(f"  {name} " in result.stdout for name in cli.list_commands(click.Context(cli)))
    assert "0.1.0" in gmoe("--version").stdout
    assert gmoe("-h").stdout == result.stdout and gmoe("rm", "-h").stdout == gmoe("rm", "--help").stdout


def test_the_module_is_the_program() -> None:
    for args, status in ((["--version"], 0), (["dream"], 2)):
        found = subprocess.run([sys.executable, "-m", "gmoe", *args], capture_output=True, text=True)
        assert (found.returncode, found.stdout) == (status, gmoe(*args).stdout)
        assert "No such command 'dream'" in found.stderr or not status


@pytest.mark.parametrize("args", [["--help"], ["run", "--help"], ["show", "no.gguf"]])
def test_what_needs_no_model_imports_no_torch(args: list[str]) -> None:
    script = (
        "import json, sys\nfrom gmoe.cli.main import cli\n"
        f"try: cli({args!r}, prog_name='gmoe')\n"
        "except SystemExit as end: print(json.dumps([end.code, sorted(sys.modules)]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    status, modules = json.loads(done.stdout.splitlines()[-1])
    assert status == (1 if args[0] == "show" else 0)
    assert "gmoe.cli.main" in modules
    assert not {"torch", "starlette", "uvicorn", "transformers", "rich", "prompt_toolkit"} & set(modules)


def test_programs_leave_out_what_only_compilers_of_torch_ask_for() -> None:
    script = (
        "import sys\nfrom gmoe.cli.main import cli\n"
        "try: cli(['show', 'no.gguf'], prog_name='gmoe')\n"
        "except SystemExit: pass\n"
        "import torch\n"
        "loaded = lambda: 'torch._decomp' in sys.modules\n"
        "before, compiled = loaded(), torch.compile(lambda x: x.sin() + 1, backend='eager')(torch.zeros(2)).tolist()\n"
        "print(before, compiled, loaded())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "False [1.0, 1.0] True\n"


def test_a_reader_that_goes_away_is_not_an_error() -> None:
    script = (
        "import click\nfrom gmoe.cli.errors import Group\n"
        "@click.group(cls=Group)\ndef cli(): pass\n"
        "@cli.command()\ndef lots():\n    for _ in range(100000): click.echo('x' * 100)\n"
        "cli(['lots'])"
    )
    writer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert writer.stdout is not None and writer.stderr is not None
    writer.stdout.readline()
    writer.stdout.close()
    complaint = writer.stderr.read()
    writer.stderr.close()
    assert (writer.wait(timeout=60), complaint) == (141, b"")


def test_our_own_bugs_are_not_hidden() -> None:
    @click.group(cls=Group)
    def group() -> None:
        pass

    @group.command()
    def broken() -> None:
        raise KeyError("bug")

    assert isinstance(CliRunner().invoke(group, ["broken"]).exception, KeyError)
    assert sentence(ValueError()) == "ValueError"


def test_an_answer_that_is_left_is_ended_in_the_model() -> None:
    llm = FakeLLM(["a", "b", "c"])
    out = io.StringIO()
    answer = spoken(llm.generate("x"), lambda text: out.write(text) and None)
    assert next(answer) == "a"
    answer.close()
    assert llm.answers_closed == 1 and out.getvalue() == "a"


@pytest.mark.parametrize("pieces", [["one two three four"], list("one two three four"), ["one tw", "o three", " four"]])
def test_words_are_wrapped_wherever_the_pieces_break(pieces: list[str]) -> None:
    out = io.StringIO()
    wrapped = Wrapped(lambda text: out.write(text) and None, width=9)
    for piece in pieces:
        wrapped(piece)
    wrapped.end()
    assert out.getvalue() == "one two \nthree \nfour"


def test_text_that_fits_is_wrapped_into_itself() -> None:
    text, out = "def f():\n    return 1\n\n* a  b", io.StringIO()
    wrapped = Wrapped(lambda piece: out.write(piece) and None, width=40)
    wrapped(text)
    wrapped.end()
    assert out.getvalue() == text


def test_a_script_without_spaces_is_written_as_it_comes() -> None:
    out: list[str] = []
    wrapped = Wrapped(lambda piece: out.append(piece) if piece else None, width=9)
    for piece in ("a 日", "本語", "の文。"):
        wrapped(piece)
        assert out[-1] == piece[-1]
    assert "".join(out) == "a 日本語\nの文。"


def test_figures_count_one_answer_only() -> None:
    llm = FakeLLM()
    list(llm.generate("first"))
    figures = Figures(llm, 0.0)
    list(llm.generate("second"))
    lines = dict(line.split(":", 1) for line in figures.lines())
    assert lines["prompt eval count"].strip() == "3 token(s)"
    assert lines["host"].strip() == "hits 8, misses 0"
    assert difference({"a": 3, "b": "x", "c": {"d": 2}}, {"a": 1, "c": {}}) == {"a": 2, "b": "x", "c": {"d": 2}}


def test_memory_is_read_as_written() -> None:
    texts = {
        "6GiB": 6 << 30,
        "6gib": 6 << 30,
        "500MB": 500_000_000,
        "1.5K": 1536,
        "4096": 4096,
        "60%": 600,
        "auto": 1000,
    }
    assert {text: memory_bytes(text, 1000) for text in texts} == texts


@pytest.mark.parametrize("text", ["", "GiB", "-1", "0", "0%", "101%", "6 apples", "6GiB 2", "1e9", "nan"])
def test_memory_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="host_memory is"):
        RuntimeOptions(host_memory=text)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("device", "tpu"),
        ("threads", -1),
        ("threads", 1.5),
        ("threads", 100_000),
        ("context", True),
        ("max_sequences", 0),
        ("kv_type", "q4_0"),
        ("activations", "int8"),
        ("miss", "../load"),
        ("evict", None),
        ("policy", [1]),
        ("twin", ""),
        ("seed", "x"),
    ],
)
def test_an_option_out_of_range_is_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name} is "):
        RuntimeOptions(**{name: value})  # type: ignore[arg-type]


def test_the_options_do_not_wait_for_torch() -> None:
    assert import_module("gmoe").RuntimeOptions is RuntimeOptions
    assert {"LLM", "RuntimeOptions", "SamplingParams", "Tokenizer"} <= set(dir(import_module("gmoe")))
    assert RuntimeOptions(twin="a/b").twin == Path("a/b")  # type: ignore[arg-type]


def test_a_real_model_is_answered_and_interrupted(tmp_path: Path) -> None:
    path = str(write_model(tmp_path / "tiny.gguf"))
    words = ["run", path, "Once", "--temperature", "0", "--max-tokens"]
    first, second = (gmoe(*words, "4", "--verbose") for _ in range(2))
    assert (first.exit_code, second.exit_code) == (0, 0) and first.stdout == second.stdout
    assert "eval count:           4 token(s)" in first.stderr and "hits" in first.stderr
    assert gmoe(*words, "4", "--context", "2").stderr.count("Error: ") == 1
    told = gmoe(*words, "4", "--logprobs", "2").stderr.splitlines()[-4:]
    shares = [float(line.split("%")[0].rsplit(" ", 1)[1]) for line in told]
    assert all(" of " in line and line.count("%") == 3 for line in told) and all(0 < share <= 100 for share in shares)

    endless_flags = ["--raw", "--context", "20000", "--logit-bias", "269=-1e9", "--logit-bias", "271=-1e9"]
    command = [sys.executable, "-c", "from gmoe.cli.main import cli; cli()", *words[:-1], *endless_flags]
    told = {**os.environ, "PYTHONFAULTHANDLER": "1"}  # where it hangs, if it does
    endless = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=told,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background ignore it
    )  # fmt: skip
    assert endless.stdout is not None and endless.stdout.read(1)
    endless.send_signal(signal.SIGINT)
    try:
        _, complaint = endless.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        endless.send_signal(signal.SIGABRT)
        pytest.fail(f"it runs on after an interrupt: {endless.communicate(timeout=60)[1].decode()}")
    assert endless.returncode == 130 and b"Traceback" not in complaint


class Thinking(list[SimpleNamespace]):
    """The events of an answer that thinks, with the parser of its dialect."""

    def __init__(self, *pieces: str, tools: Any = None):
        super().__init__(SimpleNamespace(text=piece) for piece in pieces)
        self.parser = parser_for("hermes", tools)

    def __next__(self) -> SimpleNamespace:
        if not self:
            raise StopIteration
        return self.pop(0)

    def close(self) -> None:
        self.clear()


def shown(*pieces: str, tools: Any = None, **given: Any) -> tuple[str, str]:
    """What is written, and what is content."""
    out = io.StringIO()
    content = "".join(spoken(Thinking(*pieces, tools=tools), lambda text: out.write(text) and None, **given))
    return out.getvalue(), content


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_a_destructor_swallowed_still_ends_the_answer() -> None:
    class Deaf:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    def events() -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(text="a")
        Deaf()
        yield SimpleNamespace(text="b")
        yield SimpleNamespace(text="c")

    said: list[str] = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            said.extend(spoken(events(), lambda text: None))
        assert said == ["a", "b"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_interrupt_while_torch_is_imported_raises_nothing_in_it(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(
        "import os, signal, time\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(20)\n"
        "except KeyboardInterrupt:\n    print('raised')\n"
    )
    command = [sys.executable, "-c", "from gmoe.cli.main import cli; cli()", "quantize", "a.gguf", "b.gguf", "Q8_0"]
    done = subprocess.run(
        command, capture_output=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, timeout=60,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


@pytest.mark.parametrize(
    ("handler", "status", "said"), [(signal.SIG_DFL, -signal.SIGINT, b""), (signal.SIG_IGN, 0, b"went on\n")]
)
def test_an_interrupt_before_anything_is_there_is_quiet(tmp_path: Path, handler: Any, status: int, said: bytes) -> None:
    (tmp_path / "click.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nprint('went on', flush=True)\nos._exit(0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", "from gmoe.cli.start import cli; cli()"], capture_output=True, cwd=tmp_path, timeout=60,
        env={**os.environ, "PYTHONPATH": str(tmp_path)}, preexec_fn=lambda: signal.signal(signal.SIGINT, handler),
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (status, said, b"")


def test_words_and_names_of_any_script_where_python_was_told_to_know_ascii_only(tmp_path: Path) -> None:
    write_model(tmp_path / "日本.gguf")
    (tmp_path / "Modelfile").write_text("FROM 日本.gguf\nSYSTEM l’été\n", encoding="utf-8")
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "GMOE_HOME": str(tmp_path / "home")}

    def gmoe(*words: str) -> bytes:
        command = [sys.executable, "-c", "from gmoe.cli.start import cli; cli()", *words]
        done = subprocess.run(command, capture_output=True, cwd=tmp_path, env={**os.environ, **ascii_only}, timeout=60)
        return done.stdout + (done.stderr if done.returncode else b"")

    assert gmoe("create", "m") == b""
    assert gmoe("show", "m", "--system").decode() == "l’été\n"
    assert gmoe("show", "日本", "--license").decode() == "Error: '日本' is not a model name: its model is '日本'\n"
    assert gmoe("show", "日本.gguf", "--modelfile").decode().endswith("FROM 日本.gguf\n")


def test_an_answer_does_not_end_at_a_letter_that_the_terminal_lacks(llm: FakeLLM, model: str) -> None:
    llm.pieces = ("é", "日")
    assert CliRunner(charset="latin-1").invoke(cli, ["run", model, "Hi"]).stdout_bytes == "é\\u65e5\n".encode("latin-1")
    result = CliRunner(charset="latin-1").invoke(cli, ["show", "日.gguf"])
    assert result.stderr == "Error: \\u65e5.gguf: there is no such file\n"
    said = sentence(UnicodeEncodeError("latin-1", "a日", 1, 2, "ordinal not in range"))
    assert said == "the output cannot have '日': its encoding is latin-1; PYTHONIOENCODING=utf-8 changes it"


@pytest.mark.parametrize(
    ("words", "closed", "status", "said"),
    [("show demo", 1, 0, b""), ("show no.gguf", 1, 1, b"Error: no.gguf: there is no such file\n"),
     ("show demo", 2, 0, b""), ("show no.gguf", 2, 1, b""), ("--version", 0, 1, b"Error: No space left on device\n"),
     ("show demo", 0, 1, b"Error: No space left on device\n")],
)  # fmt: skip
def test_an_output_that_is_closed_or_full(words: str, closed: int, status: int, said: bytes) -> None:
    command = [sys.executable, "-c", "from gmoe.cli.main import cli; cli()", *words.split()]
    with open("/dev/null" if closed == 2 else "/dev/full", "wb") as out:
        done = subprocess.run(
            command, stdout=out, stderr=subprocess.PIPE, preexec_fn=lambda: os.close(closed), timeout=60
        )
    assert (done.returncode, done.stderr) == (status, said)


def test_a_command_leaves_the_handler_of_interrupts_as_it_was() -> None:
    for handler in (signal.default_int_handler, signal.SIG_DFL, signal.SIG_IGN):
        before = signal.signal(signal.SIGINT, handler)
        try:
            assert gmoe("show", "no.gguf").exit_code == 1
            assert signal.getsignal(signal.SIGINT) is handler
        finally:
            signal.signal(signal.SIGINT, before)


def test_thinking_stands_between_lines_of_its_own() -> None:
    pieces = ("<th", "ink>\nlet me", " see\n</think>", "\n\nHel", "lo")
    assert shown(*pieces) == ("Thinking...\nlet me see\n...done thinking.\n\nHello", "Hello")
    assert shown(*pieces, hide_thinking=True) == ("Hello", "Hello")
    assert shown("<think>cut") == ("Thinking...\ncut\n...done thinking.\n\n", "")
    call = '<tool_call>{"name": "f", "arguments": {"a": "é"}}</tool_call>'
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert shown(call, tools=tools)[0] == '{"name": "f", "arguments": {"a": "é"}}\n'


def test_a_format_is_followed_and_thinking_only_where_asked_for(llm: FakeLLM, model: str) -> None:
    assert gmoe("run", model, "Hi", "--format", "json").exit_code == 0
    assert gmoe("run", model, "Hi", "--format", '{"type": "string"}', "--think").exit_code == 0
    (_, _, plain, without), (_, _, thought, with_) = llm.asked
    assert (plain.schema, plain.grammar_after, without["enable_thinking"]) == ({"type": "object"}, None, False)
    assert (thought.schema, thought.grammar_after) == ({"type": "string"}, "</think>")
    assert with_["enable_thinking"] is True
    llm.dialect = "gemma4"
    assert gmoe("run", model, "Hi", "--format", "json", "--think").exit_code == 0
    assert gmoe("run", model, "Hi", "--format", "json", "--think", "--grammar-after", "So:").exit_code == 0
    assert [asked[2].grammar_after for asked in llm.asked[2:]] == ["<channel|>", "So:"]
    llm.dialect = "solar"  # whose answers have a header, thinking or not
    assert gmoe("run", model, "Hi", "--format", "json").exit_code == 0
    assert gmoe("run", model, "Hi", "--format", "json", "--raw").exit_code == 0
    assert [asked[2].grammar_after for asked in llm.asked[4:]] == ["<|content|>", None]
    assert gmoe("run", model, "Hi", "--format", "yaml").exit_code == 2


def test_a_model_that_is_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GMOE_HOME", str(tmp_path))
    result = gmoe("run", "nobody", "Hi")
    assert (result.exit_code, result.stderr) == (
        1,
        "Error: model 'nobody:latest' not found; gmoe pull nobody would fetch it\n",
    )
    result = gmoe("run", "127.0.0.1:9/a/b", "Hi", "--insecure")
    assert result.exit_code == 1 and "Error: pull model manifest: 127.0.0.1:9: " in result.stderr


def test_loading_says_the_model_s_name(llm: FakeLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GMOE_HOME", str(tmp_path / "home"))
    (tmp_path / "Modelfile").write_text(f"FROM {write_model(tmp_path / 'x.gguf')}\n")
    assert gmoe("create", "story", "-f", str(tmp_path / "Modelfile")).exit_code == 0
    said: list[str] = []
    monkeypatch.setattr(
        import_module("gmoe.cli.session"), "waiting", lambda text: said.append(text) or nullcontext(said.append)
    )
    assert gmoe("run", "story", "Hi").exit_code == 0
    assert said == ["loading story"]
