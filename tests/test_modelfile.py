"""Modelfiles: every instruction, every way to quote, every error with its line; and back to text."""

import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gmoe.library.modelfile import COMMANDS, PARAMETERS, Command, Modelfile, ModelfileError, parse_modelfile
from gmoe.options import RuntimeOptions

EXAMPLE = Path(__file__).parents[1] / "Modelfile.example"
VALUES = [
    ("SYSTEM plain text  ", "plain text"),
    ("system lower case", "lower case"),
    ("SYSTEM a # is text", "a # is text"),
    ('SYSTEM "one line"', "one line"),
    ('SYSTEM " edges "', " edges "),
    ('SYSTEM "two\nlines"', "two\nlines"),
    ('SYSTEM """\ntwo\nlines\n"""', "\ntwo\nlines\n"),
    ('SYSTEM """a "quoted" word"""', 'a "quoted" word'),
    ('SYSTEM """ends with ""', None),
    ('SYSTEM "say "hi" now"', 'say "hi" now'),
    ("SYSTEM 'single'", "'single'"),
    ('SYSTEM ""', ""),
    ('SYSTEM """"""', ""),
    ('SYSTEM "never closed', None),
    ("SYSTEM \\n stays", "\\n stays"),
    ("SYSTEM 日本語 🦙", "日本語 🦙"),
    ('SYSTEM """\r\ncr\r\n"""', "\ncr\n"),
    ("SYSTEM\ttab", "tab"),
]
ERRORS = [
    ("", "no FROM line"),
    ("SYSTEM x", "no FROM line"),
    ("# only a comment\n", "no FROM line"),
    ("FROM x\n\nBAD thing", "line 3: command must be one of from, adapter,"),
    ("FROM x\nSYSTEM", "line 2: a value is missing"),
    ("FROM", "line 1: a value is missing"),
    ('FROM x\nSYSTEM """a\n\n', "line 2: unexpected end of file"),
    ("FROM x\nPARAMETER nonsense 1", "line 2: unknown parameter 'nonsense'"),
    ("FROM x\nPARAMETER num_ctx many", "line 2: num_ctx must be a whole number, not 'many'"),
    ("FROM x\nPARAMETER temperature hot", "line 2: temperature must be a number"),
    ("FROM x\nPARAMETER use_mmap maybe", "line 2: use_mmap must be true or false"),
    ("FROM x\nPARAMETER", "line 2: a name is expected"),
    ("FROM x\nMESSAGE robot hi", 'line 2: message role must be one of "system", "user", or "assistant"'),
    ("FROM x\nREQUIRES soon", "line 2: requires must be a version"),
    ("FROM x\n<html>", "line 2: a name is expected"),
    ("FROM x\n# gmoe: speed 11", "unknown setting 'speed'"),
    ("FROM x\n# gmoe: host_memory lots", "line 2: host_memory is 'lots'"),
    (f"FROM x\n\n# gmoe: host_memory {'9' * 400}GiB", "line 3: host_memory is '999"),
    (f"FROM x\nPARAMETER num_ctx {'9' * 5000}", f"line 2: num_ctx must be a whole number, not '{'9' * 40}'"),
    ("FROM x\n# gmoe: quality high\n# gmoe: max_kld 1", "line 3: quality is 'high' and max_kld 1; give one of them"),
    ("FROM x\n# gmoe: threads two", "threads must be a whole number"),
    ("FROM x\n# gmoe: miss", "must be a setting and its value"),
    ("FROM x\n# gmoe: policy fast", "unknown setting 'policy'"),
]


FILES = [  # whole files: what peers accept, and what it means
    ("FROM a", [("from", "a", "")]),
    ("from a\r\nSYSTEM b\r\n", [("from", "a", ""), ("system", "b", "")]),
    ("\n\n  FROM   a  \n\n", [("from", "a", "")]),
    ("# one\nFROM a\n# two\n   # three\n", [("from", "a", "")]),
    ("SYSTEM b\nFROM a", [("system", "b", ""), ("from", "a", "")]),
    ("FROM a # b", [("from", "a # b", "")]),
    ("FROM ./dir/model-00001-of-00002.gguf", [("from", "./dir/model-00001-of-00002.gguf", "")]),
    ("FROM registry.example:5000/me/m:tag", [("from", "registry.example:5000/me/m:tag", "")]),
    ('FROM "a b.gguf"', [("from", "a b.gguf", "")]),
    ("FROM a\nFROM projector.gguf", [("from", "a", ""), ("from", "projector.gguf", "")]),
    ("FROM a\nADAPTER l.gguf\nDRAFT d.gguf", [("from", "a", ""), ("adapter", "l.gguf", ""), ("draft", "d.gguf", "")]),
    ("FROM a\nRENDERER x\nPARSER y", [("from", "a", ""), ("renderer", "x", ""), ("parser", "y", "")]),
    ("FROM a\nREQUIRES v0.14.0-rc1", [("from", "a", ""), ("requires", "v0.14.0-rc1", "")]),
    ("FROM a\nParameter Temperature 0.5", [("from", "a", ""), ("parameter", "0.5", "temperature")]),
    ('FROM a\nPARAMETER stop "### User:"', [("from", "a", ""), ("parameter", "### User:", "stop")]),
    ('FROM a\nPARAMETER stop """\n"""', [("from", "a", ""), ("parameter", "\n", "stop")]),
    ('FROM a\nPARAMETER stop "', None),
    ("FROM a\nMESSAGE User hi there", [("from", "a", ""), ("message", "hi there", "user")]),
    (
        'FROM a\nMESSAGE system """You\nare # here"""\nMESSAGE assistant ""',
        [("from", "a", ""), ("message", "You\nare # here", "system"), ("message", "", "assistant")],
    ),
    ("FROM a\nLICENSE MIT\nLICENSE GPL", [("from", "a", ""), ("license", "MIT", ""), ("license", "GPL", "")]),
    (
        'FROM a\nTEMPLATE """\n{{ if .System }}"x"{{ end }}\n# no comment\n"""\nSYSTEM s',
        [("from", "a", ""), ("template", '\n{{ if .System }}"x"{{ end }}\n# no comment\n', ""), ("system", "s", "")],
    ),
    ('FROM a\nSYSTEM "one\n\ntwo"', [("from", "a", ""), ("system", "one\n\ntwo", "")]),
    ("FROM\ta", [("from", "a", "")]),
    ("FROM 模型\nSYSTEM 🦙 ça", [("from", "模型", ""), ("system", "🦙 ça", "")]),
    ("FROM a\n=", None),
    ("FROM a\nFROMx b", None),
]


def test_a_stand_in_for_a_template_is_none() -> None:
    stand_in = "FROM a\nTEMPLATE {{ .Prompt }}\n"
    assert parse_modelfile(stand_in).template == "{{ .Prompt }}"
    assert parse_modelfile(f"{stand_in}RENDERER x").template is None
    assert parse_modelfile("FROM a\nTEMPLATE {{ .Prompt }}!\nRENDERER x").template == "{{ .Prompt }}!"
    assert parse_modelfile("FROM a\nRENDERER x").template is None


@pytest.mark.parametrize(("text", "commands"), FILES)
def test_files(text: str, commands: list[tuple[str, str, str]] | None) -> None:
    if commands is None:
        with pytest.raises(ModelfileError, match="^line 2: "):
            parse_modelfile(text)
        return
    modelfile = parse_modelfile(text)
    assert [tuple(command) for command in modelfile.commands] == commands
    assert parse_modelfile(str(modelfile)) == parse_modelfile(("\ufeff" + text).encode("utf-16")) == modelfile


@pytest.mark.parametrize(("line", "value"), VALUES)
def test_values(line: str, value: str | None) -> None:
    if value is None:
        with pytest.raises(ModelfileError, match="unexpected end of file"):
            parse_modelfile(f"FROM x\n{line}\nLICENSE MIT\n")
        return
    modelfile = parse_modelfile(f"FROM x\n{line}\nLICENSE MIT\n")
    assert modelfile.commands == (Command("from", "x"), Command("system", value), Command("license", "MIT"))
    assert parse_modelfile(str(modelfile)) == modelfile


@pytest.mark.parametrize(("text", "sentence"), ERRORS)
def test_errors_are_a_sentence_with_the_line(text: str, sentence: str) -> None:
    with pytest.raises(ModelfileError) as error:
        parse_modelfile(text)
    assert sentence in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_encodings(encoding: str) -> None:
    text = "FROM x\nSYSTEM 日本 ü\n"
    mark = "\ufeff" if encoding in ("utf-16-le", "utf-16-be") else ""
    assert parse_modelfile((mark + text).encode(encoding)).last("system") == "日本 ü"


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(ModelfileError, match="neither UTF-8 nor UTF-16"):
        parse_modelfile(b"FROM \xff\n")


def test_parameters_have_types_and_stop_gathers() -> None:
    text = 'FROM x\nPARAMETER stop "a "\nPARAMETER stop b\nparameter NUM_CTX 1\nPARAMETER num_ctx 4096\n'
    text += "PARAMETER temperature 0.5\nPARAMETER use_mmap True\n"
    assert parse_modelfile(text).parameters == {
        "stop": ["a ", "b"],
        "num_ctx": 4096,
        "temperature": 0.5,
        "use_mmap": True,
    }


def test_a_deprecated_parameter_is_dropped_with_a_warning() -> None:
    modelfile = parse_modelfile("FROM x\nPARAMETER mirostat 2\nPARAMETER top_k 3\n")
    assert modelfile.parameters == {"top_k": 3}
    assert modelfile.warnings == ("line 2: parameter mirostat is deprecated",)


def test_own_settings_are_comments_to_others() -> None:
    text = "# gmoe: host_memory 6GiB\nFROM x\n  #gmoe: threads 2\n# gmoe: policy.t1 0.6\n# gmoe likes comments\n"
    modelfile = parse_modelfile(text)
    assert modelfile.options == {"host_memory": "6GiB", "threads": 2, "policy": {"t1": 0.6}}
    assert RuntimeOptions(**modelfile.options).threads == 2
    assert parse_modelfile(str(modelfile)) == modelfile
    assert [line[0] for line in str(modelfile).splitlines()] == ["#", "#", "#", "F"]


def test_the_example_shows_everything_once() -> None:
    modelfile = parse_modelfile(EXAMPLE.read_bytes())
    shown = EXAMPLE.read_text()
    assert not modelfile.warnings
    assert [name for name in COMMANDS if f"{name.upper()} " not in shown] == []
    assert set(modelfile.parameters) == set(PARAMETERS)
    assert parse_modelfile(str(modelfile)) == modelfile
    settings = {setting[0].partition(".")[0] for setting in modelfile.settings}
    assert settings == {*RuntimeOptions.__dataclass_fields__}


def test_many_lines_take_little_time() -> None:
    began, many = time.perf_counter(), 60_000
    assert len(parse_modelfile("FROM x\nPARAMETER stop a\n" * many).commands) == 2 * many
    with pytest.raises(ModelfileError, match="line 2: unexpected end of file"):
        parse_modelfile('FROM x\nLICENSE "a' + f"\n{'a' * 99}" * many)
    assert time.perf_counter() - began < 5


def test_conversation() -> None:
    modelfile = parse_modelfile('FROM x\nMESSAGE user Hi\nMESSAGE assistant """Hello\nyou"""\n')
    assert modelfile.messages == [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello\nyou"}]


@given(st.text(alphabet='ab "#\n', max_size=12))
def test_whatever_parses_round_trips(text: str) -> None:
    try:
        modelfile = parse_modelfile(f"FROM x\nSYSTEM {text}\n")
    except ModelfileError:
        return
    assert parse_modelfile(str(modelfile)) == modelfile


@given(st.text(alphabet='a "#\n', min_size=1, max_size=12))
@example('"""\nDocs.\n"""')
def test_a_value_that_no_modelfile_can_hold_is_told_of(value: str) -> None:
    modelfile = Modelfile((Command("from", "x"), Command("system", value)))
    quotes = any(line.rstrip().endswith('"""') for line in value.split("\n")[:-1])
    assert ("# The next value cannot be read again" in str(modelfile)) == quotes
    if not quotes:
        assert parse_modelfile(str(modelfile)) == modelfile


def test_a_modelfile_built_by_hand_prints() -> None:
    assert (
        str(Modelfile((Command("from", "x"), Command("parameter", "a b ", "stop"))))
        == 'FROM x\nPARAMETER stop "a b "\n'
    )
