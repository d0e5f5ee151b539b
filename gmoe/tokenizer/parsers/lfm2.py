"""LFM2: a list of calls as Python writes them, `[name(key='value')]`, or of objects as JSON does, between marks."""

import ast
import re
from typing import Any

from gmoe.tokenizer.parsers.arguments import ToolCall, Tools, Unreadable, call_of
from gmoe.tokenizer.parsers.tags import THINK, Dialect, Parser, TagParser

TAGS = ("<|tool_call_start|>", "<|tool_call_end|>")
MARKS = (*THINK, *TAGS)
_PART = re.compile(  # of what follows a quote decides whether it closes: the models leave apostrophes as they are
    r"""(?P<prefix>\w?)(?P<quote>\"{3}|'{3}|["'])"""
    r"""(?P<text>(?:\\.|(?!(?P=quote)\s*(?:[,)\]}:"']|\Z))[^\\])*)(?P=quote)"""
    r"""|(?P<number>\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)(?![\w.-])"""
    r"""|(?P<word>\w[\w.-]*)(?P<named>(?=\s*[=(]))?|(?P<open>["'])""",
    re.DOTALL,
)
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|.)", re.DOTALL)
_LETTERS = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "0": "\0", "\n": ""} | {x: x for x in "\\'\"/"}
_WORDS = {"true": "True", "false": "False", "null": "None"}


def read(body: str, tools: Tools) -> list[ToolCall]:
    """All calls between the marks; a name may be any word, dotted and hyphenated ones and Python's own as well."""
    names: dict[str, str] = {}

    def python(part: re.Match[str]) -> str:
        word = part["word"]
        if part["named"] is not None:  # Python is shown a name of its own kind
            shown = f"_{len(names)}"
            names[shown] = word
            return shown
        if part["number"]:
            return part["number"]
        if word:
            if word not in {*_WORDS, *_WORDS.values()}:
                raise Unreadable(f"{word} is no value")
            return _WORDS.get(word, word)
        if part["prefix"] or part["open"]:
            raise Unreadable("a text that does not end, or one of another kind")
        return repr(_text(part["text"]))

    try:
        tree = ast.parse(_PART.sub(python, body.strip()), mode="eval").body
        nodes = tree.elts if isinstance(tree, ast.List) else [tree]
        calls = [_call(node, names) for node in nodes]
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # as Python says that it is none
        raise Unreadable(str(error)) from None
    if not calls:
        raise Unreadable("no call")
    return calls


def _text(written: str) -> str:
    text = _ESCAPE.sub(lambda escape: _letter(escape[1]), written)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # JSON writes some letters as two


def _letter(escape: str) -> str:
    return chr(int(escape[1:], 16)) if len(escape) > 1 else _LETTERS.get(escape, "\\" + escape)


def _call(node: ast.expr, names: dict[str, str]) -> ToolCall:
    match node:
        case ast.Call(ast.Name(name), [], keywords):
            return ToolCall(_named(name, names), {_named(one.arg, names): _value(one.value) for one in keywords})
        case ast.Dict():
            return call_of(_value(node))
    raise Unreadable("no call")


def _named(name: Any, names: dict[str, str]) -> str:
    if name not in names:
        raise Unreadable("an argument or a call without a name")
    return names[name]


def _value(node: ast.expr | None) -> Any:
    match node:
        case ast.Constant(str() | int() | float() | None as value):
            return value
        case ast.UnaryOp(ast.USub(), ast.Constant(int() | float() as value)):
            return -value
        case ast.List(values):
            return [_value(one) for one in values]
        case ast.Dict(keys, values) if all(isinstance(key, ast.Constant) for key in keys):
            pairs = {_value(key): _value(value) for key, value in zip(keys, values, strict=True)}
            if all(isinstance(key, str) for key in pairs):
                return pairs
    raise Unreadable("no value")


def parser(tools: Tools, prompt: str) -> Parser:
    """A new parser; what stands in the thinking calls nothing."""
    return TagParser(Dialect(calls=(TAGS,), calls_end_thinking=False, read=read), tools, prompt)
