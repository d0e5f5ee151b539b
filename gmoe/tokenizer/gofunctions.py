"""The functions of Go templates, and how Go prints and reads values, as far as chat templates need them."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date, timedelta
from typing import Any

_VERB = re.compile(r"%([sdvq%])")
_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_TYPES = {"string": "string", "number": "number", "integer": "number", "boolean": "boolean", "null": "null"}


class TemplateError(ValueError):
    """A template that gmoe cannot render; its text is one sentence."""


class Beyond(TemplateError):
    """A template that is more than gmoe's part of the language."""


def read(value: Any, name: str) -> Any:
    """The field of a mapping, by its name or the name in snake case; None where there is neither."""
    if not isinstance(value, Mapping):
        return None
    return value[name] if name in value else value.get(_WORD_START.sub("_", name).lower())


def text_of(value: Any) -> str:
    """A value as `{{ }}` writes it: text as it is, lists and mappings as JSON."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else to_json(value)


def to_json(value: Any) -> str:
    """JSON as Go writes it: compact, with <, > and & escaped."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _equal(first: Any, *others: Any) -> bool:
    if not others:
        raise TemplateError("eq in the template needs two values")
    return any(first == other for other in others)


def _order(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def ordered(first: Any, second: Any) -> bool:
        try:
            return compare(first, second)
        except TypeError:
            raise TemplateError(f"the template cannot compare {text_of(first)} and {text_of(second)}") from None

    return ordered


def _length(value: Any) -> int:
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, Mapping | list | tuple):
        return len(value)
    if value is None:
        return 0
    raise TemplateError(f"the template takes len of {text_of(value)}")


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if isinstance(value, Mapping):
            value = value.get(key)
        elif isinstance(value, list | tuple) and isinstance(key, int) and 0 <= key < len(value):
            value = value[key]
        else:
            raise TemplateError(f"the template asks for the index {text_of(key)} where there is none")
    return value


def _slice(value: Any, *bounds: Any) -> Any:
    """Like Go's: byte positions in text, and bounds that must be in order and inside."""
    whole = value.encode() if isinstance(value, str) else value
    if not isinstance(whole, bytes | list | tuple) or len(bounds) > 2:
        raise TemplateError(f"the template takes a slice of {text_of(value)[:40]}")
    first = bounds[0] if bounds else 0
    last = bounds[1] if len(bounds) > 1 else len(whole)
    if not all(isinstance(bound, int) for bound in (first, last)) or not 0 <= first <= last <= len(whole):
        raise TemplateError("the template takes a slice that is not inside its value")
    part = whole[first:last]
    return part.decode(errors="replace") if isinstance(part, bytes) else part


def _printf(form: Any, *values: Any) -> str:
    if not isinstance(form, str) or "%" in _VERB.sub("", form):
        raise TemplateError(f"printf in the template knows %s, %d, %v and %q only, not {form!r}")
    rest = list(values)
    if len(rest) != sum(verb != "%" for verb in _VERB.findall(form)):
        raise TemplateError(f"printf {form!r} in the template has {len(rest)} values")

    def one(match: re.Match[str]) -> str:
        if match[1] == "%":
            return "%"
        value = rest.pop(0)
        return json.dumps(value, ensure_ascii=False) if match[1] == "q" else text_of(value)

    return _VERB.sub(one, form)


def _typescript(schema: Any) -> str:
    """A JSON schema as a TypeScript type, as harmony templates write the parameters of tools."""
    schema = schema if isinstance(schema, Mapping) else {}
    if schema.get("anyOf"):
        return " | ".join(_typescript(one) for one in schema["anyOf"])
    types = schema.get("type") or []
    names: Sequence[str] = [types] if isinstance(types, str) else types
    written = []
    for name in names:
        if name == "array":
            written.append(f"{_typescript(schema['items'])}[]" if schema.get("items") else "any[]")
        else:
            written.append("Record<string, any>" if name == "object" else _TYPES.get(name, "any"))
    return " | ".join(written) or "any"


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "eq": _equal,
    "ne": lambda a, b: a != b,
    "lt": _order(lambda a, b: a < b),
    "le": _order(lambda a, b: a <= b),
    "gt": _order(lambda a, b: a > b),
    "ge": _order(lambda a, b: a >= b),
    "not": lambda value: not value,
    "len": _length,
    "index": _index,
    "slice": _slice,
    "printf": _printf,
    "json": to_json,
    "toTypeScriptType": _typescript,
    "currentDate": lambda: date.today().isoformat(),
    "yesterdayDate": lambda: (date.today() - timedelta(days=1)).isoformat(),
}
