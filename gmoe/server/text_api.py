"""The routes of all dialects that ask a model for something: text, vectors, tokens."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from gmoe.llm import LLM
from gmoe.server import anthropic, llama, llama_text, metrics, ollama, openai, openai_text, responses
from gmoe.server.ask import Ask, Refused
from gmoe.server.body import read
from gmoe.server.prompt import prompt_of
from gmoe.server.service import Endpoint, Service, json_response, read_json, spoken
from gmoe.server.stream import Dialect


class TextApi:
    """The endpoints."""

    def __init__(self, service: Service):
        self.service, self.host = service, service.host

    def routes(self) -> list[Route]:
        """Method and path -> function."""
        asks = self.service.asks
        posts: list[tuple[str, Endpoint]] = [
            ("/api/generate", asks(ollama, ollama.parse_generate, ollama.render_generate)),
            ("/api/chat", asks(ollama, ollama.parse_chat, ollama.render_chat)),
            ("/api/embed", spoken(ollama, self.embed)),
            ("/api/embeddings", spoken(ollama, self.old_embed)),
            ("/v1/chat/completions", asks(openai, openai.parse_chat, openai.render_chat)),
            ("/v1/completions", asks(openai, openai_text.parse_completion, openai_text.render_completion)),
            ("/v1/embeddings", spoken(openai, self.embeddings)),
            ("/v1/responses", asks(responses, responses.parse, responses.render)),
            ("/v1/messages", asks(anthropic, anthropic.parse, anthropic.render)),
            ("/v1/messages/count_tokens", spoken(anthropic, self.count_tokens)),
            ("/completion", spoken(llama, self.completion)),
            ("/completions", spoken(llama, self.completion)),
            ("/tokenize", spoken(llama, self.tokenize)),
            ("/detokenize", spoken(llama, self.detokenize)),
            ("/apply-template", spoken(llama, self.apply_template)),
            ("/slots/{id}", spoken(llama, self.slot)),
        ]
        gets: list[tuple[str, Dialect, Endpoint]] = [
            ("/v1/models", openai, self.models),
            ("/v1/models/{id:path}", openai, self.model),
            ("/health", llama, self.health),
            ("/v1/health", llama, self.health),
            ("/props", llama, self.props),
            ("/slots", llama, self.slots),
            ("/metrics", llama, self.metrics),
        ]
        return [
            *(Route(path, endpoint, methods=["POST"]) for path, endpoint in posts),
            *(Route(path, spoken(dialect, endpoint), methods=["GET"]) for path, dialect, endpoint in gets),
        ]

    async def embed(self, request: Request) -> Response:
        """POST /api/embed"""
        began = time.perf_counter()
        given = read(ollama.EmbedBody, await read_json(request))
        options, _ = ollama.options_of(given.options or {})
        inputs = [given.input] * bool(given.input) if isinstance(given.input, str) else given.input or []
        keep_alive = ollama.keep_alive_of(given.keep_alive)

        async def body() -> dict[str, Any]:
            vectors, count, waited = await self.service.embed(
                given.model,
                list(inputs),
                keep_alive=keep_alive,
                truncate=given.truncate is not False,
                dimensions=given.dimensions,
                num_ctx=options.get("num_ctx"),
            )
            return {
                "model": given.model,
                "embeddings": [[float(x) for x in vector] for vector in vectors],
                "total_duration": ollama.nanoseconds(time.perf_counter() - began),
                "load_duration": ollama.nanoseconds(waited),
                "prompt_eval_count": count,
            }

        return self.service.once(ollama, body)

    async def old_embed(self, request: Request) -> Response:
        """POST /api/embeddings"""
        given = read(ollama.EmbeddingsBody, await read_json(request))
        keep_alive = ollama.keep_alive_of(given.keep_alive)
        prompts = [given.prompt] if given.prompt else []

        async def body() -> dict[str, Any]:
            vectors, _, _ = await self.service.embed(given.model, prompts, keep_alive=keep_alive)
            return {"embedding": [float(x) for vector in vectors for x in vector]}

        return self.service.once(ollama, body)

    async def embeddings(self, request: Request) -> Response:
        """POST /v1/embeddings"""
        given = read(openai_text.EmbeddingsBody, await read_json(request))
        if given.encoding_format not in (None, "float", "base64"):
            raise Refused(400, f"encoding_format is {given.encoding_format!r}; it must be float or base64")
        inputs: list[Any] = [given.input] if isinstance(given.input, str) else list(given.input)
        if inputs and isinstance(inputs[0], int):
            inputs = [inputs]

        async def body() -> dict[str, Any]:
            vectors, count, _ = await self.service.embed(given.model, inputs, dimensions=given.dimensions)
            return openai_text.embeddings(given, vectors, count)

        return self.service.once(openai, body)

    async def count_tokens(self, request: Request) -> Response:
        """POST /v1/messages/count_tokens"""
        ask = anthropic.parse_count(await read_json(request))
        async with self.host.admitted(), self.service.lease(ask) as lease:
            prompt = await asyncio.to_thread(prompt_of, lease.llm, lease.entry, ask)
        return json_response({"input_tokens": len(prompt.ids)})

    async def completion(self, request: Request) -> Response:
        """POST /completion"""
        body = await read_json(request)
        name = llama_text.read_completion(body).model
        ask = llama_text.parse_completion(body, await self._named(name))
        return self.service.answer(llama, ask, llama_text.render_completion)

    async def tokenize(self, request: Request) -> Response:
        """POST /tokenize"""
        given = read(llama.TokenizeBody, await read_json(request))
        return await self._with(given.model, lambda llm: llama.tokenize(llm, given))

    async def detokenize(self, request: Request) -> Response:
        """POST /detokenize"""
        given = read(llama.DetokenizeBody, await read_json(request))
        return await self._with(given.model, lambda llm: llama.detokenize(llm, given))

    async def apply_template(self, request: Request) -> Response:
        """POST /apply-template"""
        given = read(llama.TemplateBody, await read_json(request))
        messages = [openai.message_of("", read(openai.ChatMessage, message)) for message in given.messages]
        values = given.chat_template_kwargs or {}
        ask = Ask(
            model=await self._named(given.model),
            messages=messages,
            tools=given.tools or (),
            template_values=values,
            truncate=False,
            think_strict=False,
            only_render=True,
        )
        async with self.host.admitted(), self.service.lease(ask) as lease:
            prompt = await asyncio.to_thread(prompt_of, lease.llm, lease.entry, ask)
        return json_response({"prompt": prompt.text})

    async def models(self, request: Request) -> Response:
        """GET /v1/models"""
        entries = await asyncio.to_thread(self.host.catalog.entries)
        return json_response({"object": "list", "data": [openai.model(entry) for entry in entries]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/{id}"""
        entry = await asyncio.to_thread(self.host.catalog.find, request.path_params["id"])
        return json_response(openai.model(entry) | {"id": request.path_params["id"]})

    async def health(self, request: Request) -> Response:
        """GET /health"""
        loading = self.host.loaded and all(one.llm is None for one in self.host.loaded)
        if loading:
            raise Refused(503, "Loading model")
        return json_response({"status": "ok"})

    async def props(self, request: Request) -> Response:
        """GET /props"""
        running = self.host.running.get(self.service.last_used)
        return json_response(llama.props(running, self.service.last_used if running else ""))

    async def slots(self, request: Request) -> Response:
        """GET /slots"""
        slots = llama.slots(self.host.loaded)
        if "fail_on_no_slot" in request.query_params and all(slot["is_processing"] for slot in slots):
            raise Refused(503, "no slot available")
        return json_response(slots)

    async def slot(self, request: Request) -> Response:
        """POST /slots/{id}?action=save, restore or erase: what has been computed is found again by itself"""
        raise Refused(501, "slots are not saved or erased here: an answer finds what any other has computed")

    async def metrics(self, request: Request) -> Response:
        """GET /metrics"""
        return PlainTextResponse(metrics.render(self.host), media_type=metrics.media)

    async def _named(self, name: str | None) -> str:
        return await asyncio.to_thread(self.service.named, name)

    async def _with(self, name: str | None, work: Callable[[LLM], Any]) -> Response:
        return json_response(await self.service.with_model(await self._named(name), work))
