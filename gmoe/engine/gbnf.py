"""GBNF, llama.cpp's grammar notation, as Lark text for llguidance that accepts exactly the same strings."""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_REPEAT = re.compile(r"\{\s*(\d+)\s*(,?)\s*(\d*)\s*\}")
_ESCAPE = re.compile(r'\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|([\\"\[\]nrt]))')
_PLAIN = {"n": "\n", "r": "\r", "t": "\t"}
_ANY = r"[\x{0}-\x{10FFFF}]"
MAX_DEPTH = 200
MAX_TIMES = 50_000  # of what repetitions within one another repeat: what they cost is what they come to


class GrammarError(ValueError):
    """A grammar that cannot be used; its text is one sentence."""


class _Node(NamedTuple):
    """`kind` is chars, rule, seq, any or repeat; `text` a class as a regex, a rule's name or a repetition."""

    kind: str
    text: str = ""
    parts: "tuple[_Node, ...]" = ()


def gbnf_to_lark(text: str) -> str:
    """Lark text whose `start` is GBNF's `root`; raises `GrammarError` naming the line.

    A grammar without recursion becomes one regular expression. Where a rule reaches itself, every character is a
    lexeme of its own: Lark's lexemes are greedy, GBNF's characters are not.
    """
    rules = _Parser(text).rules()
    if "root" not in rules:
        raise GrammarError("the grammar has no rule named root")
    reached = _reached(rules)
    ending = _ending({name: rules[name] for name in reached})
    endless = next((name for name in reached if name not in ending), None)
    if endless:
        raise GrammarError(f"the grammar's rule {endless} never ends: all its alternatives lead back to itself")
    if _most_times(rules) > MAX_TIMES:
        raise GrammarError(f"the grammar's repetitions within one another come to more than {MAX_TIMES}")
    names = {name: f"r{n}" for n, name in enumerate(reached)}
    if not _recursive(rules):
        names = {name: label.upper() for name, label in names.items()}
    lines = [f"start: {names['root']}"]
    lines += [f"{names[name]}: {_lark(rules[name], names.__getitem__)}" for name in reached]
    return "\n".join(lines) + "\n"


class _Parser:
    def __init__(self, text: str):
        self.text, self.at, self.depth = text, 0, 0
        self.rule = ""  # which is being read

    def rules(self) -> dict[str, _Node]:
        found: dict[str, _Node] = {}
        self.space(lines=True)
        while self.at < len(self.text):
            name = self.rule = self.name()
            self.space(lines=False)
            if not self.text.startswith("::=", self.at):
                raise self.error("'::=' is expected after a rule's name")
            self.at += 3
            self.space(lines=True)
            found[name] = self.alternatives(nested=False)
            if self.at < len(self.text) and self.text[self.at] not in "\r\n":
                raise self.error(f"{self.text[self.at]!r} is not expected here")
            self.space(lines=True)
        return found

    def error(self, what: str) -> GrammarError:
        return GrammarError(f"line {self.text.count(chr(10), 0, self.at) + 1} of the grammar: {what}")

    def space(self, lines: bool) -> None:
        blank = " \t\r\n" if lines else " \t"
        while self.at < len(self.text) and (self.text[self.at] in blank or self.text[self.at] == "#"):
            if self.text[self.at] == "#":
                end = re.compile(r"[^\r\n]*").match(self.text, self.at)
                self.at = end.end() if end else self.at
            else:
                self.at += 1

    def name(self) -> str:
        match = _NAME.match(self.text, self.at)
        if not match:
            raise self.error(f"a rule's name is expected at {self.text[self.at : self.at + 10]!r}")
        self.at = match.end()
        return match[0]

    def alternatives(self, nested: bool) -> _Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.error(f"more than {MAX_DEPTH} parentheses within one another")
        parts = [self.sequence(nested)]
        while self.text.startswith("|", self.at):
            self.at += 1
            self.space(lines=True)
            parts.append(self.sequence(nested))
        self.depth -= 1
        return _Node("any", parts=tuple(parts))

    def sequence(self, nested: bool) -> _Node:
        parts: list[_Node] = []
        while self.at < len(self.text) and self.text[self.at] not in "|)\r\n":
            parts += self.item()
            self.space(nested)
            while repetition := self.repetition():
                if not parts:
                    raise self.error("there is nothing to repeat")
                parts[-1] = _Node("repeat", repetition, (parts[-1],))
                self.space(nested)
        return _Node("seq", parts=tuple(parts))

    def item(self) -> list[_Node]:
        letter = self.text[self.at]
        if letter == '"':
            return [_Node("seq", parts=tuple(_Node("chars", _code(c)) for c in self.literal()))]
        if letter == "[":
            return [_Node("chars", self.characters())]
        if letter == ".":
            self.at += 1
            return [_Node("chars", _ANY)]
        if letter == "(":
            self.at += 1
            self.space(lines=True)
            inner = self.alternatives(nested=True)
            if not self.text.startswith(")", self.at):
                raise self.error("a parenthesis is not closed")
            self.at += 1
            return [inner]
        if _NAME.match(letter):
            return [_Node("rule", self.name())]
        if letter in "*+?{":
            return []
        raise self.error(f"{letter!r} is not expected here")

    def literal(self) -> Iterator[str]:
        self.at += 1
        while not self.text.startswith('"', self.at):
            yield self.character()
        self.at += 1

    def characters(self) -> str:
        self.at += 1
        inverted = self.text.startswith("^", self.at)
        self.at += inverted
        spans: list[tuple[str, str]] = []
        while not self.text.startswith("]", self.at):
            first = last = self.character()
            if self.text.startswith("-", self.at) and not self.text.startswith("-]", self.at):
                self.at += 1
                last = self.character()
            if first > last:
                raise self.error(f"the range {first}-{last} is upside down")
            spans.append((first, last))
        if not spans:
            raise self.error("a pair of brackets is empty")
        if inverted and _everything(spans):
            raise self.error(f"brackets of the rule {self.rule} match nothing: they leave out every character")
        self.at += 1
        inside = "".join(f"{_code(first)}-{_code(last)}" for first, last in spans)
        return f"[{'^' * inverted}{inside}]"

    def character(self) -> str:
        if self.at >= len(self.text):
            raise self.error("the grammar ends within quotes or brackets")
        if self.text[self.at] != "\\":
            self.at += 1
            return self.text[self.at - 1]
        match = _ESCAPE.match(self.text, self.at)
        if not match:
            raise self.error(f"the escape {self.text[self.at : self.at + 2]!r} is unknown")
        number = match[1] or match[2] or match[3]
        if number and (int(number, 16) > 0x10FFFF or 0xD800 <= int(number, 16) < 0xE000):
            raise self.error(f"{match[0]} is no character")
        self.at = match.end()
        return chr(int(number, 16)) if number else _PLAIN.get(match[4], match[4])

    def repetition(self) -> str:
        match = _REPEAT.match(self.text, self.at)
        if match:
            self.at = match.end()
            low, high = int(match[1]), match[3] if match[2] else match[1]
            if high and low > int(high):
                raise self.error(f"{match[0]} is upside down")
            return f"{{{low},{high}}}"
        letter = self.text[self.at : self.at + 1]
        if letter == "{":
            raise self.error("a repetition is written {n}, {n,} or {n,m}")
        if letter and letter in "*+?":
            self.at += 1
            return letter
        return ""


def _everything(spans: list[tuple[str, str]]) -> bool:
    """Whether every character is in one of them."""
    reached = 0
    for first, last in sorted(spans):
        if ord(first) > reached and not (reached >= 0xD800 and ord(first) <= 0xE000):  # between, there is none
            return False
        reached = max(reached, ord(last) + 1)
    return reached > 0x10FFFF


def _code(letter: str) -> str:
    return rf"\x{{{ord(letter):X}}}"


def _lark(node: _Node, name_of: Callable[[str], str]) -> str:
    if node.kind == "chars":
        return f"/{node.text}/"
    if node.kind == "rule":
        return name_of(node.text)
    parts = [_lark(part, name_of) for part in node.parts]
    if node.kind == "repeat":
        return '""' if node.text == "{0,0}" else f"({parts[0]}){node.text}"
    joined = (" | " if node.kind == "any" else " ").join(parts) or '""'
    return f"({joined})" if len(parts) > 1 else joined


def _most_times(rules: dict[str, _Node]) -> int:
    """How often the most repeated part of root is repeated, as far as it is counted; a rule within itself is not."""
    known: dict[str, int] = {}
    begun, stack = set[str](), ["root"]
    while stack:
        name = stack[-1]
        called = () if name in begun else _called(rules[name])
        begun.add(name)
        if inner := [one for one in called if one not in begun]:
            stack += inner
        else:
            stack.pop()
            if name not in known:
                known[name] = _times(rules[name], known)
    return known["root"]


def _times(node: _Node, known: dict[str, int]) -> int:
    if node.kind == "rule":
        return known.get(node.text, 1)
    most = max((_times(part, known) for part in node.parts), default=1)
    if node.kind == "repeat":
        most *= max((min(int(n), MAX_TIMES + 1) for n in re.findall(r"\d+", node.text)), default=1)
    return min(most, MAX_TIMES + 1)


def _called(node: _Node) -> Iterator[str]:
    if node.kind == "rule":
        yield node.text
    for part in node.parts:
        yield from _called(part)


def _reached(rules: dict[str, _Node]) -> list[str]:
    """The rules that root needs, root first."""
    found = ["root"]
    for name in found:
        for called in _called(rules[name]):
            if called not in rules:
                raise GrammarError(f"the grammar has no rule named {called}, which {name} uses")
            if called not in found:
                found.append(called)
    return found


def _ending(rules: dict[str, _Node]) -> set[str]:
    """The rules that accept a text of some length, even an empty one."""
    found: set[str] = set()
    while more := {name for name, node in rules.items() if name not in found and _ends(node, found)}:
        found |= more
    return found


def _ends(node: _Node, ending: set[str]) -> bool:
    """Whether a node accepts a text where of the rules only those in `ending` do."""
    if node.kind == "rule":
        return node.text in ending
    if node.kind == "repeat" and node.text.startswith(("*", "?", "{0,")):
        return True
    ends = [_ends(part, ending) for part in node.parts]
    return any(ends) if node.kind == "any" else all(ends)


def _recursive(rules: dict[str, _Node]) -> bool:
    """Whether a rule that root needs reaches itself."""
    left = {name: set(_called(rules[name])) for name in _reached(rules)}
    while free := [name for name, called in left.items() if not called & left.keys()]:
        for name in free:
            del left[name]
    return bool(left)
