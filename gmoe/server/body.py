"""Request bodies: pydantic models that ignore unknown fields, and one sentence for what is wrong with a known one."""

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from gmoe.server.ask import Refused

B = TypeVar("B", bound=BaseModel)


class Body(BaseModel):
    """A request body; what it does not name is ignored, as clients of other versions expect."""

    model_config = ConfigDict(extra="ignore", strict=True, protected_namespaces=())


def read(kind: type[B], body: Any) -> B:
    """The body as `kind`; `Refused` (400) naming the field that is wrong."""
    if not isinstance(body, dict):
        raise Refused(400, "the request body must be a JSON object")
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"] if not str(part).endswith("]"))
        if first["type"] == "missing" and where == "model":
            raise Refused(400, "model is required") from None
        raise Refused(400, f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}".removeprefix(": ")) from None


def short(value: Any) -> str:
    """A value in a sentence."""
    text = value if isinstance(value, str) and value.isidentifier() else repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
