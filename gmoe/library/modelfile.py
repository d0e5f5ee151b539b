"""Modelfile: Ollama's recipe of a model, read and written; gmoe's own settings stand in comments that Ollama skips."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from gmoe.options import RuntimeOptions

COMMANDS = tuple("from adapter template system license message parameter renderer parser draft requires".split())
ROLES = ("system", "user", "assistant")
PARAMETERS: dict[str, type] = dict.fromkeys(
    ("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "draft_num_predict")
    + ("num_keep", "seed", "num_predict", "top_k", "repeat_last_n"),
    int,
)
PARAMETERS |= dict.fromkeys(
    ("temperature", "top_p", "min_p", "typical_p", "repeat_penalty", "presence_penalty", "frequency_penalty"), float
)
PARAMETERS |= {"use_mmap": bool, "stop": list}
DEPRECATED = tuple(
    "penalize_newline low_vram f16_kv logits_all vocab_only use_mlock mirostat mirostat_tau mirostat_eta".split()
)

_BOOLS = {word: value for value, words in ((True, "1 t true"), (False, "0 f false")) for word in words.split()}
_KINDS = {int: "a whole number", float: "a number", bool: "true or false"}
_NUMBERS = {"threads": int, "context": int, "max_sequences": int, "seed": int, "max_kld": float}
_OPTIONS = tuple(f.name for f in fields(RuntimeOptions))
_BLANK = re.compile(r"\s*")
_SETTING = re.compile(r"#\s*gmoe:\s*(.*)")
_WORD = re.compile(r"([A-Za-z0-9_]+)[^\S\n]*")
_SEMVER = re.compile(r"v?\d+(\.\d+){0,2}(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?")


class ModelfileError(ValueError):
    """A Modelfile that cannot be read; its text is one sentence, with the line where it went wrong."""


class Command(NamedTuple):
    """One instruction; `key` is the name of a parameter or the role of a message."""

    name: str
    value: str
    key: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, (self.name.upper(), self.key, _quote(self.value))))


Check = Callable[[Command, Mapping[str, Any]], None]


@dataclass(frozen=True)
class Modelfile:
    """`str()` gives a text that parses to an equal Modelfile, or says of a value that none can hold it.

    Plain comments are not kept.
    """

    commands: tuple[Command, ...]
    settings: tuple[tuple[str, str], ...] = ()  # gmoe's own: a `RuntimeOptions` name or policy.KNOB, and its text
    warnings: tuple[str, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        lines = [f"# gmoe: {key} {value}" for key, value in self.settings]
        for command in self.commands:
            quoted = _quote(command.value)
            if _value(quoted, 0)[1] < len(quoted):
                lines.append(f"# The next value cannot be read again: a line within it ends in {quoted[:3]}")
            lines.append(str(command))
        return "\n".join(lines) + "\n"

    def values(self, name: str) -> list[str]:
        """What every instruction of this name says, in order."""
        return [command.value for command in self.commands if command.name == name]

    def last(self, name: str) -> str | None:
        """What the last instruction of this name says, for those of which only one counts."""
        return next(reversed(self.values(name)), None)

    @property
    def template(self) -> str | None:
        """What TEMPLATE says; beside a RENDERER Ollama's stand-in for none, `{{ .Prompt }}`, is none."""
        text = self.last("template")
        return None if self.last("renderer") and (text or "").replace(" ", "") == "{{.Prompt}}" else text

    @property
    def parameters(self) -> dict[str, Any]:
        """PARAMETERs with their types; `stop` gathers a list, of the others the last counts."""
        given: dict[str, Any] = {}
        for command in self.commands:
            if command.name == "parameter":
                value = _typed(command.key, command.value)
                given[command.key] = [*given.get("stop", []), value] if command.key == "stop" else value
        return given

    @property
    def messages(self) -> list[dict[str, str]]:
        """MESSAGEs as a conversation: role and content."""
        return [{"role": c.key, "content": c.value} for c in self.commands if c.name == "message"]

    def conversation(self, messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """`messages` behind the Modelfile's own; its system text stands first unless they begin with one."""
        system, rest = [], list(messages)
        if not all(isinstance(message, Mapping) for message in rest):
            raise ValueError("messages must be a list of mappings such as {'role': 'user', 'content': 'Hi'}")
        if rest and rest[0].get("role") == "system":
            system = [rest.pop(0)]
        elif self.last("system"):
            system = [{"role": "system", "content": self.last("system")}]
        return [*system, *self.messages, *rest]

    @property
    def options(self) -> dict[str, Any]:
        """gmoe's settings as keyword arguments of `RuntimeOptions`."""
        return options_of(self.settings)


def parse_modelfile(text: str | bytes, check: Check | None = None) -> Modelfile:
    """Read a Modelfile; bytes may be UTF-8 or, with a byte order mark, UTF-16. Raises `ModelfileError`.

    `check` is called with every instruction and setting (named "#") and all settings as keyword arguments of
    `RuntimeOptions`; its `ValueError` is told with the line.
    """
    text = (_decode(text) if isinstance(text, bytes) else text).lstrip("\ufeff").replace("\r\n", "\n")
    commands, settings, warnings, kept = [], [], [], []
    options: dict[str, str] = {}  # settings but knobs, as they stand
    for line, item in _items(text):
        if item.name == "parameter" and item.key in DEPRECATED:
            warnings.append(f"line {line}: parameter {item.key} is deprecated")
            continue
        kept.append((line, item))
        if item.name != "#":
            commands.append(item)
            continue
        settings.append((item.key, item.value))
        with _naming(line):
            options_of(((item.key, item.value), *(pair for pair in options.items() if pair[0] != item.key)))
        if "." not in item.key:
            options[item.key] = item.value
    if not any(command.name == "from" for command in commands):
        raise ModelfileError("no FROM line")
    modelfile = Modelfile(tuple(commands), tuple(settings), tuple(warnings))
    if check is not None:
        given = modelfile.options
        for line, item in kept:
            with _naming(line):
                check(item, given)
    return modelfile


@contextmanager
def _naming(line: int) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ModelfileError(f"line {line}: {error}") from None


def options_of(settings: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """Settings as keyword arguments of `RuntimeOptions`; one that it would refuse is a `ValueError`."""
    options: dict[str, Any] = {}
    for key, value in settings:
        name, dot, knob = key.partition(".")
        if name not in _OPTIONS or (name == "policy") != bool(dot and knob):
            raise ValueError(f"unknown setting {key!r}; there are {', '.join(_OPTIONS)} (policy.KNOB)")
        if name == "policy":
            options.setdefault("policy", {})[knob] = _knob(value)
        elif name in _NUMBERS:
            options[name] = _converted(_NUMBERS[name], value, key)
        else:
            options[name] = value
    RuntimeOptions(**options)
    return options


def _items(text: str) -> Iterator[tuple[int, Command]]:
    """Each instruction and gmoe setting (named "#") with its line number."""
    at, line, counted = 0, 1, 0
    while (at := _skip(_BLANK, text, at)) < len(text):
        line, counted = line + text.count("\n", counted, at), at
        with _naming(line):
            if text[at] == "#":
                end = _end_of_line(text, at)
                setting = _SETTING.fullmatch(text[at:end])
                if setting:
                    yield line, _setting(setting[1])
            else:
                command, end = _command(text, at)
                yield line, command
        at = end


def _setting(text: str) -> Command:
    key, _, value = text.strip().partition(" ")
    if not key or not value.strip():
        raise ValueError(f"'# gmoe: {text}' must be a setting and its value")
    return Command("#", value.strip(), key)


def _command(text: str, at: int) -> tuple[Command, int]:
    name, at = _word(text, at)
    name = name.lower()
    if name not in COMMANDS:
        raise ValueError(f"command must be one of {', '.join(COMMANDS)}")
    key = ""
    if name in ("parameter", "message"):
        key, at = _word(text, at)
        key = key.lower()
        if name == "message" and key not in ROLES:
            raise ValueError('message role must be one of "system", "user", or "assistant"')
    value, at = _value(text, at)
    if name == "parameter" and key not in DEPRECATED:
        _typed(key, value)
    if name == "requires" and not _SEMVER.fullmatch(value):
        raise ValueError(f"requires must be a version such as 0.14.0, not {value!r}")
    return Command(name, value, key), at


def _value(text: str, at: int) -> tuple[str, int]:
    """The value that begins at `at`: the rest of the line, or as many lines as its quotes hold; and where it ends."""
    end = _end_of_line(text, at)
    quote = '"""' if text.startswith('"""', at) else '"' if text.startswith('"', at) else ""
    begin = at + len(quote)  # of the line, behind the quotes that open
    while quote:
        if text[begin:end].rstrip().endswith(quote):
            return text[at:end].rstrip()[len(quote) : -len(quote)], end
        if end == len(text):
            raise ValueError("unexpected end of file: the quotes are never closed")
        begin, end = end + 1, _end_of_line(text, end + 1)
    if not text[at:end].strip():
        raise ValueError("a value is missing")
    return text[at:end].strip(), end


def _word(text: str, at: int) -> tuple[str, int]:
    match = _WORD.match(text, at)
    if not match:
        raise ValueError(f"a name is expected at {text[at : _end_of_line(text, at)][:20]!r}")
    return match[1], match.end()


def _typed(name: str, value: str) -> Any:
    if name not in PARAMETERS:
        raise ValueError(f"unknown parameter '{name}'")
    return value if PARAMETERS[name] is list else _converted(PARAMETERS[name], value, name)


def _converted(kind: type, value: str, name: str) -> Any:
    try:
        return _BOOLS[value.lower()] if kind is bool else kind(value)
    except (KeyError, ValueError):
        raise ValueError(f"{name} must be {_KINDS[kind]}, not {value[:40]!r}") from None


def _knob(value: str) -> Any:
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(value, value)


def _quote(value: str) -> str:
    if value and value == value.strip() and "\n" not in value and not value.startswith('"'):
        return value
    quote = '"""' if '"' in value else '"'
    return f"{quote}{value}{quote}"


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8")
    except UnicodeDecodeError:
        raise ModelfileError("the Modelfile is neither UTF-8 nor UTF-16 with a byte order mark") from None


def _end_of_line(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end


def _skip(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return match.end() if match else at
