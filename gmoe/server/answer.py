"""Answer: one request to a loaded model; events as they come, and an end from any thread."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from gmoe.engine.sampling import SamplingParams
from gmoe.llm import LLM, TextEvent, TextStream
from gmoe.server.ask import Ask, Chosen, End, Event, Piece, Refused, Usage
from gmoe.server.catalog import Entry
from gmoe.server.prompt import Prompt, prompt_of

GGUF_SAMPLING = {"temp": "temperature", "penalty_last_n": "repeat_last_n", "penalty_repeat": "repeat_penalty"}
PARAMS = frozenset(f.name for f in fields(SamplingParams))


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
        prompt = prompt_of(llm, self.entry, ask)
        if ask.only_render:
            yield End("stop", prompt=prompt.text)
            return
        params = self._params(prompt)
        before = _expert_counters(llm)
        stream = self._stream = llm.run(prompt.ids, params, ignore_end=ask.ignore_end)
        if self._cancelled:
            stream.close()
        first = last = 0.0
        ids: list[int] = []
        reason = None
        for event in stream:
            last = time.perf_counter()
            first = first or last
            reason = event.finish_reason
            if event.token_id is not None:
                ids.append(event.token_id)
            yield Piece(event.text, ids=tuple(ids[-1:]), logprobs=self._logprobs(event))
        if reason is None:
            if self._cancelled:
                return
            raise RuntimeError("the model was closed")
        usage = Usage(
            prompt_tokens=len(prompt.ids),
            cached_tokens=stream.n_reused,
            tokens=len(ids),
            load_seconds=self.waited,
            prompt_seconds=first - began,
            decode_seconds=last - first,
            total_seconds=last - began + self.waited,
            experts=_difference(_expert_counters(llm), before),
        )
        yield End(reason, usage, (*prompt.ids, *ids), prompt=prompt.text)

    def _params(self, prompt: Prompt) -> SamplingParams:
        ask = self.ask
        sampling = dict(ask.defaults)
        for key, value in self.llm.file.metadata.items():
            name = key.removeprefix("general.sampling.")
            if name != key and GGUF_SAMPLING.get(name, name) in PARAMS:
                sampling[GGUF_SAMPLING.get(name, name)] = value
        sampling |= sampling_of(self.entry.parameters)
        sampling |= ask.sampling
        if prompt.room < (sampling.get("max_tokens") or prompt.room + 1):
            sampling["max_tokens"] = prompt.room
        sampling["stop"] = tuple(sampling.get("stop") or ())
        try:
            return SamplingParams(**sampling)
        except ValueError as error:
            raise Refused(400, str(error)) from None

    def _logprobs(self, event: TextEvent) -> tuple[Chosen, ...]:
        if event.logprobs is None or event.token_id is None:
            return ()
        top = tuple(self._chosen(id, logprob) for id, logprob in event.logprobs.top)
        return (self._chosen(event.token_id, event.logprobs.chosen)._replace(top=top),)

    def _chosen(self, id: int, logprob: float) -> Chosen:
        tokenizer = self.llm.tokenizer
        raw = tokenizer.token_bytes(id) or tokenizer.text(id).encode()
        return Chosen(raw.decode("utf-8", "replace"), max(-9999.0, min(0.0, logprob)), raw, id)


def sampling_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Ollama's options as fields of `SamplingParams`; those that concern loading are left out."""
    sampling = {name: value for name, value in options.items() if name in PARAMS and name != "max_tokens"}
    if sampling.get("seed") == -1:
        del sampling["seed"]
    if (sampling.get("top_k") or 0) < 0:
        sampling["top_k"] = 0
    if options.get("num_predict", 0) > 0:
        sampling["max_tokens"] = options["num_predict"]
    return sampling


def _expert_counters(llm: LLM) -> dict[str, Any]:
    return {name: value for name, value in llm.stats.items() if isinstance(value, Mapping)}


def _difference(now: Any, before: Any) -> Any:
    if isinstance(now, Mapping):
        return {name: _difference(value, before.get(name, 0)) for name, value in now.items()}
    return now - before if isinstance(now, int | float) else now
