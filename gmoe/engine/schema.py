"""Schemas: a JSON schema read as llama.cpp reads it, so that an answer comes to its end."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from gmoe.engine.gbnf import MAX_TIMES

MOST_INTEGER = 2**53 - 1  # what every reader of JSON holds exactly
FORMATS = frozenset(  # of texts, that JSON Schema defines; any other says nothing
    "date-time date time duration email idn-email hostname idn-hostname ipv4 ipv6 uri uri-reference iri iri-reference "
    "uuid uri-template json-pointer relative-json-pointer regex".split()
)
_NAMED = ("properties", "$defs", "definitions")  # keywords that hold schemas by name
_HELD = ("items", "prefixItems", "additionalProperties", "anyOf", "oneOf", "allOf")  # a schema, or a list of them
# What one part closes another may need: such schemas stay as they are.
_TOGETHER = ("not", "if", "dependentSchemas", "patternProperties", "unevaluatedProperties", "$dynamicRef")
_OTHERS = ("anyOf", "oneOf", "allOf", "$ref")  # likewise beside properties and beside each other
_DATA = ("const", "enum", "default", "examples")  # keywords that hold no schemas
_PIECES = re.compile(  # of a pattern: an escape, a class, a parenthesis, a repetition or a letter
    r"\\(?:[pPxu]\{[^}]*\}|.)|\[(?:\\.|[^\]\\])*\]|[()]|\{(?P<least>\d+)(?:,\d*)?\}|.", re.DOTALL
)


def bounded(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema without two things that go on for ever: whatever follows it follows `schema` too.

    Where nothing is said of other properties than those named there are none, as in llama.cpp, and an integer without
    bounds has 53 bits at most. A format that is nobody's, such as "path", is left out. Patterns that repeat too much
    are a `ValueError`.
    """
    for pattern in _patterns(schema):
        if _times(pattern) > MAX_TIMES:
            shown = pattern if len(pattern) < 80 else pattern[:80] + "..."
            raise ValueError(f"the repetitions within one another of its pattern {shown!r} come to over {MAX_TIMES}")
    if any(_together(part) for part in _parts(schema)):
        return schema
    return _bounded(schema)


def _bounded(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    out = dict(schema)
    for keyword in _NAMED:
        if isinstance(named := schema.get(keyword), Mapping):
            out[keyword] = {name: _inside(held) for name, held in named.items()}
    for keyword in _HELD:
        if keyword in schema:
            held = schema[keyword]
            out[keyword] = [_inside(one) for one in held] if isinstance(held, list) else _inside(held)
    if isinstance(schema.get("format"), str) and schema["format"] not in FORMATS:
        del out["format"]
    if _closes(schema):
        out["additionalProperties"] = False
    if _endless(schema):
        out["minimum"], out["maximum"] = -MOST_INTEGER, MOST_INTEGER
    return out


def _inside(held: Any) -> Any:
    return _bounded(held) if isinstance(held, Mapping) else held


def _parts(schema: Any) -> Iterator[Mapping[str, Any]]:
    """The schema and all schemas within it."""
    if not isinstance(schema, Mapping):
        return
    yield schema
    for keyword in _NAMED:
        if isinstance(named := schema.get(keyword), Mapping):
            for held in named.values():
                yield from _parts(held)
    for keyword in _HELD:
        held = schema.get(keyword)
        for one in held if isinstance(held, list) else [held]:
            yield from _parts(one)


def _patterns(schema: Any) -> Iterator[str]:
    """The patterns of texts and of names, wherever they stand."""
    if isinstance(schema, Mapping):
        if isinstance(pattern := schema.get("pattern"), str):
            yield pattern
        if isinstance(named := schema.get("patternProperties"), Mapping):
            yield from named
        schema = [held for keyword, held in schema.items() if keyword not in _DATA]
    if isinstance(schema, list):
        for held in schema:
            yield from _patterns(held)


def _times(pattern: str) -> int:
    """How often the most repeated part of a pattern must come, as far as it is counted; what may come costs nothing."""
    most = last = 1  # of the parentheses that are open, and of the part before
    outer: list[int] = []
    for piece in _PIECES.finditer(pattern):
        if piece[0] == "(":
            outer.append(most)
            most = last = 1
        elif piece[0] == ")" and outer:
            last, most = most, max(most, outer.pop())
        elif piece["least"]:
            last = min(last * max(1, int(piece["least"][:9])), MAX_TIMES + 1)
            most = max(most, last)
        else:
            last = 1
    return most


def _together(schema: Mapping[str, Any]) -> bool:
    parts = schema.get("allOf")
    beside = sum(keyword in schema for keyword in ("properties", *_OTHERS)) > 1
    return beside or (isinstance(parts, list) and len(parts) > 1) or any(keyword in schema for keyword in _TOGETHER)


def _closes(schema: Mapping[str, Any]) -> bool:
    properties, required = schema.get("properties"), schema.get("required", [])
    if not isinstance(properties, Mapping) or not isinstance(required, list):
        return False
    said = "additionalProperties" in schema or "minProperties" in schema
    return not said and all(isinstance(name, str) and name in properties for name in required)


def _endless(schema: Mapping[str, Any]) -> bool:
    kinds = schema.get("type")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    limits = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "enum", "const")
    return "integer" in kinds and "number" not in kinds and not any(keyword in schema for keyword in limits)
