"""llama-server's dialect: /tokenize and its kin, /props, /slots, and the counters of /metrics."""

from collections.abc import Iterable
from typing import Any

from gmoe.engine.sampling import SamplingParams
from gmoe.llm import LLM
from gmoe.server.ask import Refused
from gmoe.server.body import Body
from gmoe.server.host import Running
from gmoe.server.llama_options import DEFAULTS, settings
from gmoe.server.openai import encode, media
from gmoe.server.stream import Chunk

__all__ = ["encode", "media", "refuse"]
TYPES = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error"}
TYPES |= {501: "not_supported_error", 503: "unavailable_error"}


class TokenizeBody(Body):
    """POST /tokenize"""

    model: str | None = None
    content: str
    add_special: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None


class DetokenizeBody(Body):
    """POST /detokenize"""

    model: str | None = None
    tokens: list[int]


class TemplateBody(Body):
    """POST /apply-template"""

    model: str | None = None
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


def refuse(error: Refused, late: bool) -> Chunk:
    """llama-server's errors; the same within a stream."""
    kind = TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return {"error": {"code": error.status, "message": error.text, "type": kind}}


def tokenize(llm: LLM, given: TokenizeBody) -> dict[str, Any]:
    """The body of /tokenize."""
    ids = llm.tokenizer.encode(given.content, bool(given.add_special), given.parse_special is not False)
    if not given.with_pieces:
        return {"tokens": ids}
    return {"tokens": [{"id": id, "piece": _piece(llm, id)} for id in ids]}


def detokenize(llm: LLM, given: DetokenizeBody) -> dict[str, Any]:
    """The body of /detokenize."""
    bad = next((id for id in given.tokens if not 0 <= id < llm.tokenizer.n_vocab), None)
    if bad is not None:
        raise Refused(400, f"the token id {bad} is not one of {llm.tokenizer.n_vocab}")
    return {"content": llm.tokenizer.decode(given.tokens)}


def props(running: Running | None, path: str) -> dict[str, Any]:
    """The body of /props: of the model that is loaded, or of none."""
    llm = running.llm if running else None
    params = settings(SamplingParams(**DEFAULTS), n_predict=-1, max_tokens=-1)
    return {
        "default_generation_settings": {"n_ctx": llm.context if llm else 0, "params": params},
        "total_slots": llm.options.max_sequences if llm else 0,
        "model_path": path,
        "chat_template": llm.template.source if llm else "",
        "modalities": {"vision": False, "audio": False},
        "build_info": "gmoe",
        "is_sleeping": llm is None,
    }


def slots(running: Iterable[Running]) -> list[dict[str, Any]]:
    """The body of /slots: the places of every loaded model."""
    found: list[dict[str, Any]] = []
    for one in running:
        if one.llm is None:
            continue
        for n in range(one.llm.options.max_sequences):
            busy = n < one.users
            found.append({"id": len(found), "model": one.name, "n_ctx": one.llm.context, "is_processing": busy})
    return found


def _piece(llm: LLM, id: int) -> str | list[int]:
    raw = llm.tokenizer.token_bytes(id) or llm.tokenizer.text(id).encode()
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return list(raw)
