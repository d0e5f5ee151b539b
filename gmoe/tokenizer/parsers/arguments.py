"""Tool calls: what a parser gives for one, and how the dialects write its arguments."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

Tools = Sequence[Mapping[str, Any]]
_NAMES = {  # JSON's types of Python's
    bool: {"boolean"},
    int: {"integer", "number"},
    float: {"number"},
    list: {"array"},
    dict: {"object"},
}
_WORDS = {"true": True, "false": False, "null": None, "none": None}


class ToolCall(NamedTuple):
    """A call of one of the request's tools; `arguments` keep the model's order. `id`: the one that it wrote, if any."""

    name: str
    arguments: dict[str, Any]
    id: str = ""


class Unreadable(ValueError):
    """This is no tool call: its text is given as content."""


class Unfinished(Unreadable):
    """This may become a tool call when more text follows."""


def names_of(tools: Tools) -> frozenset[str]:
    """The names of the request's tools."""
    return frozenset(str(_function(tool).get("name")) for tool in tools)


def call_of(value: Any) -> ToolCall:
    """A call from `{"name": ..., "arguments": {...}}`, in the spellings that models use."""
    value = value.get("function", value) if isinstance(value, Mapping) else value
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise Unreadable("a tool call needs a name")
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = read_json(arguments or "{}")
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise Unreadable("the arguments of a tool call are an object")
    return ToolCall(value["name"], arguments)


def read_json(text: str) -> Any:
    """One JSON value and nothing else."""
    values = list(read_values(text))
    if len(values) != 1:
        raise Unreadable("one value is expected")
    return values[0]


def read_values(text: str, between: str = "") -> Iterator[Any]:
    """JSON values one after another, with space and the characters of `between` between them."""
    decoder, at = json.JSONDecoder(strict=False, parse_float=_finite, parse_constant=_no_number), 0
    while rest := text[at:].lstrip(" \t\r\n" + between):
        try:
            value, length = decoder.raw_decode(rest)
        except json.JSONDecodeError as error:
            cut = error.pos >= len(rest.rstrip()) or error.msg.startswith("Unterminated")
            raise (Unfinished if cut else Unreadable)(str(error)) from None
        except RecursionError:
            raise Unreadable("too many brackets within one another") from None
        except ValueError as error:  # thousands of digits
            raise Unreadable(str(error)) from None
        at = len(text) - len(rest) + length
        yield value


def typed(tools: Tools, name: str, key: str, text: str) -> Any:
    """An argument that was written as plain text, in the type that the tool declares; undeclared, it stays text."""
    return as_declared(declared(tools, name).get(key), text)


def declared(tools: Tools, name: str) -> Mapping[str, Any]:
    """The schemas of a tool's arguments by their names, as far as it declares any."""
    function = next((_function(tool) for tool in tools if _function(tool).get("name") == name), {})
    return properties_of(function.get("parameters"))


def properties_of(schema: Any) -> Mapping[str, Any]:
    """What a schema says of an object's fields; nothing where it does not."""
    found = (one.get("properties") for one in _alternatives(schema))
    return {key: value for properties in found if isinstance(properties, Mapping) for key, value in properties.items()}


def items_of(schema: Any) -> Any:
    """What a schema says of a list's items; None where it does not."""
    return next((one["items"] for one in _alternatives(schema) if "items" in one), None)


def as_declared(schema: Any, text: str) -> Any:
    """Plain text in the type that a schema names; where it may be text, too, only what reads as another that may be."""
    types, word = types_of(schema), text.strip().lower()
    if types == {"null", "string"} and word in ("null", "none"):
        return None
    if not types or types <= {"null", "string"}:
        return text
    if types & {"boolean", "null"} and "string" not in types and word in _WORDS:
        return _WORDS[word]
    try:
        value = read_json(text)
    except Unreadable:
        return text
    return value if "string" not in types or types & _NAMES.get(type(value), set()) else text


def _finite(text: str) -> float:
    return float(text) if math.isfinite(float(text)) else _no_number(text)


def _no_number(text: str) -> NoReturn:
    raise Unreadable(f"{text} is no number that JSON has")


def types_of(schema: Any) -> set[str]:
    """The JSON types that a schema allows, as far as it says so."""
    types = set[str]()
    for one in _alternatives(schema):
        given = one.get("type")
        types |= {given} if isinstance(given, str) else {str(name) for name in given or ()}
    return types


def _alternatives(schema: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(schema, Mapping):
        yield schema
        for name in ("anyOf", "oneOf"):
            for one in schema.get(name) or ():
                yield from _alternatives(one)


def _function(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    function = tool.get("function", tool) if isinstance(tool, Mapping) else {}
    return function if isinstance(function, Mapping) else {}
