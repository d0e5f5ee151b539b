"""Schemas: a JSON schema read as llama.cpp reads it, so that an answer comes to its end."""

from collections.abc import Iterator, Mapping
from typing import Any

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


def bounded(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema without two things that go on for ever: whatever follows it follows `schema` too.

    Where nothing is said of other properties than those named there are none, as in llama.cpp, and an integer without
    bounds has 53 bits at most. A format that is nobody's, such as "path", is left out.
    """
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
