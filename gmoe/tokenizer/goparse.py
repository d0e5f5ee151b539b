"""The parser of Go templates: text into pieces whose values are functions of a scope."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gmoe.tokenizer.gofunctions import FUNCTIONS, Beyond, TemplateError, read

MAX_DEPTH = 50  # blocks and parentheses within one another

_ACTION = re.compile(r"\{\{(?P<left>-(?=\s))?\s*(?:/\*.*?\*/\s*?(?P<note>-?\}\}))?", re.DOTALL)
_END = re.compile(r"\s*(?P<right>(?<=\s)-)?\}\}")
_TOKEN = re.compile(
    r"""\s*(?:(?P<string>"(?:[^"\\\n]|\\.)*"|`[^`]*`)|(?P<number>-?\d+(?:\.\d+)?)|(?P<op>:=|[=|(,])
    |(?P<close>\)(?:\.[A-Za-z_]\w*)*)|(?P<variable>\$\w*(?:\.[A-Za-z_]\w*)*)
    |(?P<field>(?:\.[A-Za-z_]\w*)+|\.(?!\w))|(?P<word>[A-Za-z_]\w*))""",
    re.VERBOSE,
)


class _Token(NamedTuple):
    kind: str
    text: str


@dataclass
class Scope:
    """What the names mean at one place: the variables of the open blocks, innermost first."""

    dot: Any
    names: dict[str, Any] = field(default_factory=dict)
    outer: "Scope | None" = None

    def holder(self, name: str) -> dict[str, Any]:
        scope: Scope | None = self
        while scope is not None and name not in scope.names:
            scope = scope.outer
        if scope is None:
            raise TemplateError(f"the template uses the undefined variable {name}")
        return scope.names


Value = Callable[[Scope], Any]


@dataclass(frozen=True)
class Pipeline:
    """A value, and the variables that it is given to."""

    value: Value
    fields: frozenset[str]  # the first words of the fields it reads
    names: tuple[str, ...] = ()
    declares: bool = True

    def run(self, scope: Scope) -> Any:
        value = self.value(scope)
        if self.names and self.declares:
            scope.names[self.names[-1]] = value
        elif self.names:
            scope.holder(self.names[-1])[self.names[-1]] = value
        return value


@dataclass(frozen=True)
class Node:
    """One piece: text, an action, a block (if, range, with), break or continue."""

    kind: str
    text: str = ""
    pipeline: Pipeline | None = None
    body: "tuple[Node, ...]" = ()
    otherwise: "tuple[Node, ...]" = ()


class _Parser:
    def __init__(self, text: str):
        self.text, self.at = text, 0
        self.trim = False  # whether the text that comes next loses its leading space
        self.depth = 0
        self.tokens: list[_Token] = []
        self.fields: set[str] = set()

    def parse(self) -> tuple[Node, ...]:
        nodes, end = self.nodes(loop=False)
        if end:
            raise self.error(f"{{{{ {end} }}}} belongs to no block")
        return nodes

    def error(self, what: str, kind: type[TemplateError] = TemplateError) -> TemplateError:
        return kind(f"line {self.text.count(chr(10), 0, self.at) + 1} of the template: {what}")

    def nodes(self, loop: bool) -> tuple[tuple[Node, ...], str]:
        """The pieces up to `end`, `else` or the end of the text, and which of these it was."""
        found: list[Node] = []
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.error(f"more than {MAX_DEPTH} blocks or parentheses within one another")
        while self.at < len(self.text):
            text = self.plain()
            if text:
                found.append(Node("text", text))
            if not self.tokens:
                continue
            kind, word = self.tokens[0]
            if kind == "word" and word in ("end", "else"):
                self.depth -= 1
                return tuple(found), word
            found.append(self.node(word if kind == "word" else "", loop))
        self.depth -= 1
        return tuple(found), ""

    def plain(self) -> str:
        """The text before the next action, whose tokens are then in `tokens` (none: a comment, or the text's end)."""
        match = _ACTION.search(self.text, self.at)
        text = self.text[self.at : match.start() if match else len(self.text)]
        text = text.lstrip() if self.trim else text
        self.tokens, self.trim = [], False
        if match is None:
            self.at = len(self.text)
            return text
        self.at = match.end()
        if match["note"]:
            self.trim = match["note"].startswith("-")
        else:
            while not (end := _END.match(self.text, self.at)):
                self.tokens.append(self.token())
            self.at, self.trim = end.end(), bool(end["right"])
            if not self.tokens:
                raise self.error("an empty {{ }}")
        return text.rstrip() if match["left"] else text

    def token(self) -> _Token:
        match = _TOKEN.match(self.text, self.at)
        if match is None or match.lastgroup is None:
            rest = self.text[self.at : self.at + 20].strip()
            raise self.error(f"{rest!r} is not supported", Beyond) if rest else self.error("{{ is never closed")
        self.at = match.end()
        return _Token(match.lastgroup, match[match.lastgroup])

    def node(self, word: str, loop: bool) -> Node:
        if word in ("break", "continue"):
            if not loop or len(self.tokens) > 1:
                raise self.error(f"{word} stands alone within range")
            return Node(word)
        if word in ("if", "range", "with"):
            return self.block(self.tokens[1:], word, loop or word == "range")
        return Node("action", pipeline=self.pipeline(self.tokens))

    def block(self, tokens: list[_Token], word: str, loop: bool) -> Node:
        pipeline = self.pipeline(tokens, pair=word == "range")
        body, end = self.nodes(loop)
        otherwise: tuple[Node, ...] = ()
        if end == "else":
            rest = self.tokens[1:]
            if rest:
                if word != "if" or rest[0] != _Token("word", "if"):
                    raise self.error(f"else {rest[0].text} is not supported here", Beyond)
                return Node(word, "", pipeline, body, (self.block(rest[1:], word, loop),))
            otherwise, end = self.nodes(loop)
        if end != "end" or len(self.tokens) != 1:
            raise self.error(f"{{{{ {word} }}}} has no {{{{ end }}}}")
        return Node(word, "", pipeline, body, otherwise)

    def pipeline(self, tokens: list[_Token], pair: bool = False) -> Pipeline:
        """`a | b | c`, perhaps given to a variable; a range may name two."""
        self.fields, rest, names, declares = set(), list(tokens), [], True
        marks = [token.text for token in tokens[:4]]
        at = 1 if marks[1:2] in ([":="], ["="]) else 3 if pair and marks[1:2] == [","] and marks[3:] == [":="] else 0
        if at:
            names, declares, rest = [t.text for t in tokens[:at:2]], marks[at] == ":=", rest[at + 1 :]
            if any(t.kind != "variable" or "." in t.text or t.text == "$" for t in tokens[:at:2]):
                raise self.error(f"{marks[0]} cannot be given a value")
        value = self.pipe(rest)
        if rest:
            raise self.error(f"{rest[0].text!r} is not supported here", Beyond)
        return Pipeline(value, frozenset(self.fields), tuple(names), declares)

    def pipe(self, tokens: list[_Token]) -> Value:
        """Take a pipeline from the front of `tokens`."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.error(f"more than {MAX_DEPTH} blocks or parentheses within one another")
        value = self.command(tokens, None)
        while tokens and tokens[0].text == "|" and tokens[0].kind == "op":
            tokens.pop(0)
            value = self.command(tokens, value)
        self.depth -= 1
        return value

    def command(self, tokens: list[_Token], piped: Value | None) -> Value:
        if not tokens:
            raise self.error("a value is missing")
        kind, name = tokens[0]
        if kind != "word" or name in ("true", "false", "nil"):
            if piped:
                raise self.error(f"{name} is not a function")
            return self.operand(tokens)
        if name not in FUNCTIONS and name not in ("and", "or"):
            raise self.error(f"{name} is not supported", Beyond)
        tokens.pop(0)
        arguments = []
        while tokens and tokens[0].text != "|" and tokens[0].kind != "close":
            arguments.append(self.operand(tokens))
        return _call(name, arguments + ([piped] if piped else []))

    def operand(self, tokens: list[_Token]) -> Value:
        kind, text = tokens.pop(0)
        if kind == "string":
            return _constant(text[1:-1] if text[0] == "`" else self.unescaped(text))
        if kind == "number":
            return _constant(float(text) if "." in text else int(text))
        if kind == "field":
            names = text.split(".")[1:] if text != "." else []
            self.fields.update(names[:1])
            return _reader(lambda scope: scope.dot, names)
        if kind == "variable":
            name, *names = text.split(".")
            self.fields.update(names[:1])
            return _reader(lambda scope: scope.holder(name)[name], names)
        if kind == "word" and text in ("true", "false", "nil"):
            return _constant({"true": True, "false": False, "nil": None}[text])
        if kind == "word" and text in FUNCTIONS:
            return _call(text, [])
        if text != "(":
            raise self.error(f"{text!r} is not supported here", Beyond)
        value = self.pipe(tokens)
        if not tokens or tokens[0].kind != "close":
            raise self.error("a parenthesis is not closed")
        names = tokens.pop(0).text.split(".")[1:]
        self.fields.update(names[:1])
        return _reader(value, names)

    def unescaped(self, text: str) -> str:
        try:
            return str(json.loads(text))
        except ValueError:
            raise self.error(f"{text} has an escape that is not supported", Beyond) from None


def parse(text: str) -> tuple[Node, ...]:
    """Read a template; what is beyond the subset is a `TemplateError` naming line and construct."""
    return _Parser(text).parse()


def _constant(value: Any) -> Value:
    return lambda scope: value


def _reader(source: Value, names: list[str]) -> Value:
    def value(scope: Scope) -> Any:
        found = source(scope)
        for name in names:
            found = read(found, name)
        return found

    return value


def _call(name: str, arguments: list[Value]) -> Value:
    def choose(scope: Scope) -> Any:
        value = None
        for argument in arguments:
            value = argument(scope)
            if bool(value) == (name == "or"):
                break
        return value

    def call(scope: Scope) -> Any:
        values = [argument(scope) for argument in arguments]
        try:
            return FUNCTIONS[name](*values)
        except TypeError:
            raise TemplateError(f"{name} in the template does not take these {len(values)} values") from None

    return choose if name in ("and", "or") else call
