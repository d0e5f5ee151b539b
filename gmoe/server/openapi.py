"""The OpenAPI description of the server, from the pydantic models of its bodies."""

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from gmoe import __version__
from gmoe.server import anthropic, llama, llama_text, ollama, ollama_models, openai, openai_text, responses

JSON, LINES, EVENTS, TEXT = "application/json", "application/x-ndjson", "text/event-stream", "text/plain"
POSTS: dict[str, tuple[type[BaseModel], tuple[str, ...], str]] = {
    "/api/generate": (ollama.GenerateBody, (JSON, LINES), "Continue a prompt."),
    "/api/chat": (ollama.ChatBody, (JSON, LINES), "Answer a conversation."),
    "/api/embed": (ollama.EmbedBody, (JSON,), "Vectors of texts."),
    "/api/embeddings": (ollama.EmbeddingsBody, (JSON,), "The vector of a text, in the older form."),
    "/api/show": (ollama_models.ShowBody, (JSON,), "All about a model."),
    "/api/create": (ollama_models.CreateBody, (JSON, LINES), "A new model from another one or from a blob."),
    "/api/copy": (ollama_models.CopyBody, (), "Another name for a model."),
    "/api/pull": (ollama_models.PullBody, (JSON, LINES), "A model from a registry."),
    "/api/push": (ollama_models.PullBody, (JSON, LINES), "A model to a registry."),
    "/v1/chat/completions": (openai.ChatBody, (JSON, EVENTS), "Answer a conversation."),
    "/v1/completions": (openai_text.CompletionBody, (JSON, EVENTS), "Continue a prompt."),
    "/v1/embeddings": (openai_text.EmbeddingsBody, (JSON,), "Vectors of texts."),
    "/v1/responses": (responses.ResponsesBody, (JSON, EVENTS), "Answer; nothing is kept."),
    "/v1/messages": (anthropic.MessagesBody, (JSON, EVENTS), "Answer a conversation."),
    "/v1/messages/count_tokens": (anthropic.CountBody, (JSON,), "The tokens of a prompt."),
    "/completion": (llama_text.CompletionBody, (JSON, EVENTS), "Continue a prompt."),
    "/tokenize": (llama.TokenizeBody, (JSON,), "Text to token ids."),
    "/detokenize": (llama.DetokenizeBody, (JSON,), "Token ids to text."),
    "/apply-template": (llama.TemplateBody, (JSON,), "A conversation as a prompt."),
}
GETS: dict[str, tuple[str, str]] = {
    "/": (TEXT, "A sign of life, or the page for browsers."),
    "/api/version": (JSON, "The version of Ollama's API that is spoken, and gmoe's own."),
    "/api/tags": (JSON, "The models."),
    "/api/ps": (JSON, "The models in memory."),
    "/api/experts": (JSON, "Which experts the models in memory used lately."),
    "/v1/models": (JSON, "The models."),
    "/health": (JSON, "Whether the server is ready."),
    "/props": (JSON, "The model last used."),
    "/slots": (JSON, "Its places."),
    "/metrics": (TEXT, "Counters in Prometheus' format."),
}
FAILURES = {
    "400": "The request is wrong.", "404": "There is no such model.", "408": "The body stalled.",
    "413": "The body is too large.", "500": "Something failed.", "501": "Not supported.", "503": "The queue is full.",
    "504": "The answer took too long.",
}  # fmt: skip


def description() -> dict[str, Any]:
    """The whole document."""
    kinds = {kind for kind, _, _ in POSTS.values()} | {ollama_models.NameBody}
    references, schemas = models_json_schema(
        [(kind, "validation") for kind in sorted(kinds, key=_name)],
        ref_template="#/components/schemas/{model}",
    )
    paths: dict[str, Any] = {}
    for path, (kind, media, text) in POSTS.items():
        schema = references[(kind, "validation")]
        paths[path] = {"post": _operation(text, media, schema)}
    for path, (medium, text) in GETS.items():
        paths[path] = {"get": _operation(text, (medium,))}
    paths["/api/delete"] = {
        "delete": _operation("Forget a model.", (), references[(ollama_models.NameBody, "validation")])
    }
    paths["/v1/models/{id}"] = {"get": _operation("A model.", (JSON,)) | {"parameters": [_parameter("id")]}}
    slot = _operation("Refused: no slot is saved, restored or erased.", ())
    paths["/slots/{id}"] = {"post": slot | {"parameters": [_parameter("id")]}}
    digest = {"parameters": [_parameter("digest")]}
    blob: dict[str, Any] = {"requestBody": {"content": {"application/octet-stream": {}}}}
    paths["/api/blobs/{digest}"] = {
        "head": _operation("Whether a blob is here.", ()) | digest,
        "post": _operation("Take a blob.", ()) | digest | blob,
    }
    paths["/api/blobs/{digest}"]["post"]["responses"]["201"] = {"description": "Taken."}
    return {
        "openapi": "3.1.0",
        "info": {"title": "gmoe", "version": __version__},
        "paths": paths,
        "components": {"schemas": schemas["$defs"]},
    }


def _operation(text: str, media: tuple[str, ...], body: Any = None) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": "Done."}
    if media:
        answer["content"] = {medium: {} for medium in media}
    operation: dict[str, Any] = {"summary": text, "responses": {"200": answer}}
    if body is not None:
        operation["requestBody"] = {"required": True, "content": {JSON: {"schema": body}}}
    operation["responses"] |= {status: {"description": meaning} for status, meaning in FAILURES.items()}
    return operation


def _parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _name(kind: type[BaseModel]) -> str:
    return f"{kind.__module__}.{kind.__name__}"
