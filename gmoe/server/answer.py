"""Answer: one request to a loaded model; events as they come, and an end from any thread."""

import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from gmoe.engine.sampler import Logprobs
from gmoe.engine.sampling import SamplingParams, lenient
from gmoe.llm import LLM
from gmoe.server.ask import Ask, Chosen, End, Event, Piece, Read, Refused, ToolCall, Usage
from gmoe.server.catalog import Entry
from gmoe.server.models import capabilities
from gmoe.server.prompt import Prompt, prompt_of
from gmoe.text import TextEvent, TextStream
from gmoe.tokenizer.parsers.arguments import ToolCall as Written
from gmoe.tokenizer.parsers.choose import call_id, dialect_of, headed, marks_of, parser_for, thinking_of

PARAMS = frozenset(f.name for f in fields(SamplingParams))
LEAST_LOGPROB = -9999.0  # JSON has no infinity


class Answer:
    """Iterate once, in a thread of its own. `waited` are the seconds the model was waited for."""

    def __init__(self, llm: LLM, entry: Entry, ask: Ask, waited: float = 0.0):
        self.llm, self.entry, self.ask, self.waited = llm, entry, ask, waited
        self._stream: TextStream | None = None
        self._cancelled = False

    def cancel(self) -> None:
        """End it; whoever iterates gets no further event."""
        self._cancelled = True
        if self._stream:
            self._stream.close()

    def __iter__(self) -> Iterator[Event]:
        began = time.perf_counter()
        ask, llm = self.ask, self.llm
        self._require_capabilities()
        prompt = prompt_of(llm, self.entry, ask)
        ask = self.ask = replace(ask, think=prompt.think)
        if ask.only_render:
            yield End("stop", prompt=prompt.text)
            return
        spoken = ask.messages is not None or (ask.templated and not ask.suffix)
        source = llm.template.source_for(ask.tools)
        dialect = dialect_of(source, self.entry.modelfile.last("parser")) if spoken else "plain"
        forced = spoken and bool(ask.tools) and ask.tool_choice not in (None, "auto", "none")
        parser = _Forced() if forced else parser_for(dialect, ask.tools, prompt.text or "")
        params = self._params(prompt, dialect, forced)
        if ask.echo:
            yield self._echo(prompt, params)
        before = expert_counters(llm)
        spelled = marks_of(dialect)
        stream = self._stream = llm.run(
            prompt.ids, params, ask.ignore_end, spelled, ask.task, ask.target_seconds, ask.reuse, ask.tells
        )
        if self._cancelled:
            stream.close()
        clock = Clock(began, self.waited)
        ids: list[int] = []
        called = thinks = False
        thought = 0  # tokens
        reason = ""
        stop: str | None = None

        def usage() -> Usage:
            return replace(
                clock.usage(len(prompt.ids), stream.n_reused, len(ids)),
                thinking_tokens=thought,
                drafted_tokens=stream.n_drafted,
                accepted_tokens=stream.n_accepted,
            )

        for event in stream:
            if event.n_read:
                seconds = time.perf_counter() - began
                yield Piece(read=Read(len(prompt.ids), stream.n_reused, event.n_read, seconds))
                continue
            if event.token_id is None:  # cancelled
                return
            clock.tick()
            reason, text, stop = event.finish_reason or "", event.text, event.stop_text
            ids.append(event.token_id)
            if not reason and "\n" in text and 0 < ask.predict_seconds < clock.predicted:
                stream.close()
                reason, text = "length", text + "".join(rest.text for rest in stream)
            given = parser.push(text) + (parser.close() if reason else [])
            piece = piece_of(given, tuple(ids[-1:]), self._logprobs(event), dialect)
            called = called or bool(piece.tool_calls)
            thinks = bool(piece.thinking) or (thinks and not piece.content and not piece.tool_calls)
            thought += thinks
            if ask.one_call and called:
                stream.close()
                reason, piece, _ = "stop", piece._replace(tool_calls=piece.tool_calls[:1]), list(stream)
            if not ask.mute:
                yield piece._replace(usage=usage() if ask.timed else None)
        if ask.mute:
            ids, thought, reason, called, stop = [], 0, "length", False, None
        taken = replace(usage(), experts=difference(expert_counters(llm), before))
        reason = "tool_calls" if called and reason == "stop" else reason
        n_ctx = len(prompt.ids) + prompt.room
        yield End(reason, taken, (*prompt.ids, *ids), stop, prompt.text, params=params, n_ctx=n_ctx)

    def _require_capabilities(self) -> None:
        ask = self.ask
        wanted = ["tools"] if ask.tools else []
        wanted += ["thinking"] if ask.think and ask.think_strict else []
        if wanted:
            able = capabilities(self.llm.file.metadata, self.entry.modelfile)
            for one in wanted:
                if one not in able:
                    raise Refused(400, f'"{ask.model}" does not support {one}')

    def _params(self, prompt: Prompt, dialect: str, forced: bool) -> SamplingParams:
        ask = self.ask
        sampling = dict(ask.defaults) | self.llm.suggested
        sampling |= sampling_of(self.entry.parameters)
        sampling |= ask.sampling
        if prompt.room < (sampling.get("max_tokens") or prompt.room + 1):
            sampling["max_tokens"] = prompt.room
        if ask.mute:
            sampling["max_tokens"] = 1
        sampling["stop"] = tuple(sampling.get("stop") or ())
        if biases := sampling.get("logit_bias"):
            sampling["logit_bias"] = self._biases(biases)
        seed = self.llm.options.seed if sampling.get("seed") is None else sampling["seed"]
        if ask.copy and seed is not None:
            sampling["seed"] = seed + ask.copy
        if forced:
            sampling |= {"json_schema": call_schema(ask.tools), "stop": ()}  # which would cut the call
        elif sampling.get("json_schema") is not None or sampling.get("grammar") is not None:
            sampling["grammar_after"], sampling["grammar_unless"] = self._thinking_first(prompt, dialect)
        try:
            return SamplingParams(**sampling)
        except ValueError as error:
            raise Refused(400, str(error)) from None

    def _biases(self, given: Mapping[int | str, float]) -> dict[int, float]:
        """Of token ids alone: a text is all of its tokens, and what is said of one more than once adds up."""
        total: dict[int, float] = {}
        for key, bias in given.items():
            for id in [key] if isinstance(key, int) else self.llm.tokenizer.encode(key, add_special=False):
                total[id] = total.get(id, 0.0) + bias
        return total

    def _thinking_first(self, prompt: Prompt, dialect: str) -> tuple[str | None, str | None]:
        """Behind which text a grammar begins, if the answer thinks first; and the text which shows that it does.

        None for that: the prompt has begun the thinking.
        """
        (begin, end), text = thinking_of(dialect), (prompt.text or "").rstrip()
        if end is None or text.endswith(end):
            return None, None
        if begin and text.endswith(begin):
            return end, None
        values = self.ask.template_values
        if headed(dialect):
            return end, None
        off = False in (self.ask.think, values.get("enable_thinking"), values.get("thinking"))
        if off or "thinking" not in capabilities(self.llm.file.metadata, self.entry.modelfile):
            return None, None
        if dialect == "gemma4" and not self.ask.think:  # its template has it think only where that is asked for
            return None, None
        return end, begin

    def _echo(self, prompt: Prompt, params: SamplingParams) -> Piece:
        """The prompt, and where probabilities are asked for those of its tokens."""
        tokenizer, ids = self.llm.tokenizer, prompt.ids
        given = self.ask.prompt if isinstance(self.ask.prompt, str) else None
        text = tokenizer.decode(ids) if given is None else given
        if params.logprobs is None:
            return Piece(text)
        found = self.llm.prompt_logprobs(ids, params.logprobs)
        chosen = [self._chosen(ids[0], 0.0)._replace(logprob=None)]
        chosen += [self._told(id, logprobs) for id, logprobs in zip(ids[1:], found, strict=True)]
        added = given is not None and ids[0] == tokenizer.bos_id and not given.startswith(tokenizer.text(ids[0]))
        return Piece(text, logprobs=tuple(chosen[1:] if added else chosen))

    def _logprobs(self, event: TextEvent) -> tuple[Chosen, ...]:
        if event.logprobs is None or event.token_id is None:
            return ()
        return (self._told(event.token_id, event.logprobs),)

    def _told(self, id: int, logprobs: Logprobs) -> Chosen:
        top = tuple(self._chosen(id, logprob) for id, logprob in logprobs.top)
        return self._chosen(id, logprobs.chosen)._replace(top=top)

    def _chosen(self, id: int, logprob: float) -> Chosen:
        tokenizer = self.llm.tokenizer
        raw = (tokenizer.token_bytes(id) or tokenizer.text(id).encode()) if id < tokenizer.n_vocab else b"?"
        return Chosen(raw.decode("utf-8", "replace"), max(LEAST_LOGPROB, min(0.0, logprob)), raw, id)


class Clock:
    """When the tokens of an answer came: `began`, and after the model had been `waited` for; seconds."""

    def __init__(self, began: float, waited: float):
        self._began, self._waited = began, waited
        self._first = self._last = 0.0

    def tick(self) -> None:
        """A token has come."""
        self._last = time.perf_counter()
        self._first = self._first or self._last

    @property
    def predicted(self) -> float:
        """Seconds from the first token to the last."""
        return self._last - self._first

    def usage(self, prompt_tokens: int, cached_tokens: int, tokens: int) -> Usage:
        """What the answer took so far."""
        return Usage(
            prompt_tokens=prompt_tokens,
            cached_tokens=cached_tokens,
            tokens=tokens,
            load_seconds=self._waited,
            prompt_seconds=self._first - self._began,
            decode_seconds=self.predicted,
            total_seconds=self._last - self._began + self._waited,
        )


class _Forced:
    """An answer that is one tool call in JSON."""

    def __init__(self) -> None:
        self._text = ""

    def push(self, text: str) -> list[Any]:
        self._text += text
        return []

    def close(self) -> list[Any]:
        try:
            call = json.loads(self._text)
        except ValueError:  # cut short
            return [("content", self._text)]
        return [("tool_call", Written(call["name"], call["arguments"]))]


def piece_of(
    given: Sequence[tuple[str, Any]], ids: tuple[int, ...], logprobs: tuple[Chosen, ...], dialect: str = "plain"
) -> Piece:
    """What a parser gave for one token; a call to which the model gave no id has a random one."""
    content = "".join(part for kind, part in given if kind == "content")
    thinking = "".join(part for kind, part in given if kind == "thinking")
    calls = (part for kind, part in given if kind == "tool_call")
    named = tuple(
        ToolCall(call.id or call_id(dialect, call.name, secrets.randbits(96)), call.name, call.arguments)
        for call in calls
    )
    return Piece(content, thinking, named, ids, logprobs)


def call_schema(tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A call of one of the tools, as JSON."""
    functions = [tool.get("function", tool) for tool in tools]
    return {
        "anyOf": [
            {
                "type": "object",
                "properties": {
                    "name": {"const": function.get("name")},
                    "arguments": function.get("parameters") or {"type": "object"},
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for function in functions
        ]
    }


def sampling_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Ollama's options as fields of `SamplingParams`; those that concern loading are left out."""
    sampling = {name: value for name, value in options.items() if name in PARAMS and name != "max_tokens"}
    if sampling.get("seed") == -1:
        sampling["seed"] = None
    if "num_predict" in options:
        sampling["max_tokens"] = options["num_predict"] if options["num_predict"] > 0 else None
    return lenient(sampling)


def expert_counters(llm: LLM) -> dict[str, Any]:
    """Those of `llm.stats` that concern experts: by tier, and by action."""
    return {name: value for name, value in llm.stats.items() if isinstance(value, Mapping)}


def difference(now: Any, before: Any) -> Any:
    """By how much counters grew."""
    if isinstance(now, Mapping):
        return {name: difference(value, before.get(name, 0)) for name, value in now.items()}
    return now - before if isinstance(now, int | float) else now
