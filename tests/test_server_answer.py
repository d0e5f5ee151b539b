"""What counts for an answer: the request before the model's own parameters."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gmoe.engine.sampling import SamplingParams
from gmoe.library.modelfile import parse_modelfile
from gmoe.server import llama_text, ollama, openai, openai_text
from gmoe.server.answer import Answer, piece_of
from gmoe.server.ask import Ask
from gmoe.server.calls import with_ids
from gmoe.server.catalog import Entry
from gmoe.server.prompt import Prompt
from gmoe.tokenizer.parsers.arguments import ToolCall

SAID = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
OWN = "FROM m.gguf\nPARAMETER num_predict 3\nPARAMETER seed 42\n"


def params(ask: Ask, seed: int | None = None, prompt: str = "x", dialect: str = "plain") -> SamplingParams:
    """With which an answer of 100 tokens at most is made."""
    file = SimpleNamespace(metadata={"tokenizer.chat_template": "{{ enable_thinking }}<think></think>"})
    llm = SimpleNamespace(suggested={}, options=SimpleNamespace(seed=seed), file=file)
    entry = Entry("m", Path("m.gguf"), "", 0, 0.0, parse_modelfile(OWN))
    answer = Answer(llm, entry, ask)  # type: ignore[arg-type]
    return answer._params(Prompt([1], 100, prompt), dialect, False)


@pytest.mark.parametrize(
    "ask",
    [
        ollama.parse_chat(SAID | {"options": {"num_predict": -1}}),
        openai.parse_chat(SAID | {"max_tokens": -1}),
        llama_text.parse_completion({"prompt": "x", "n_predict": -1}, "m"),
    ],
)
def test_no_end_counts_against_the_models_own(ask: Ask) -> None:
    assert (params(ask).max_tokens, params(ask).seed) == (100, 42)


@pytest.mark.parametrize(
    "ask",
    [
        ollama.parse_chat(SAID | {"options": {"seed": -1}}),
        llama_text.parse_completion({"prompt": "x", "seed": -1}, "m"),
        openai.parse_chat(SAID | {"seed": -1}),
        openai_text.parse_completion({"model": "m", "prompt": "x", "seed": -1}),
    ],
)
def test_any_seed_counts_against_the_models_own(ask: Ask) -> None:
    assert (params(ask).max_tokens, params(ask).seed) == (3, None)


def test_answers_to_one_request_have_seeds_of_their_own() -> None:
    parts = llama_text.parse_completion({"prompt": "x", "seed": -1, "n_cmpl": 2}, "m").parts
    assert [params(part, seed=7).seed for part in parts] == [None, 8]  # the first has the engine's


@pytest.mark.parametrize(
    ("prompt", "more", "dialect", "after", "unless"),
    [
        ("<|Assistant|>", {}, "hermes", "</think>", "<think>"),
        ("<|Assistant|>", {"reasoning_effort": "high"}, "hermes", "</think>", "<think>"),
        ("<|Assistant|>", {"reasoning_effort": "none"}, "hermes", None, None),
        ("<|Assistant|>", {"chat_template_kwargs": {"enable_thinking": False}}, "hermes", None, None),
        ("<|Assistant|>", {"chat_template_kwargs": {"thinking": False}}, "deepseek", None, None),
        ("<|Assistant|><think>\n", {}, "hermes", "</think>", None),
        ("<|Assistant|><think>\n", {"reasoning_effort": "none"}, "hermes", "</think>", None),
        ("<|Assistant|><think>\n\n</think>\n\n", {}, "hermes", None, None),
        ("<|Assistant|></think>", {"reasoning_effort": "high"}, "deepseek", None, None),
        ("<|turn>model\n", {"reasoning_effort": "high"}, "gemma4", "<channel|>", None),
        ("<|channel>thought\n<channel|>", {}, "gemma4", None, None),
        ("<|start|>assistant", {}, "harmony", "<|channel|>final<|message|>", None),
        ("<|start|>assistant", {"reasoning_effort": "none"}, "harmony", "<|channel|>final<|message|>", None),
        ("<|begin|>assistant", {}, "solar", "<|content|>", None),
        ("<|begin|>assistant", {"reasoning_effort": "none"}, "solar", "<|content|>", None),
        ("<|Assistant|>", {}, "plain", None, None),
    ],
)
def test_where_a_schema_begins(prompt: str, more: Any, dialect: str, after: str | None, unless: str | None) -> None:
    ask = openai.parse_chat(SAID | {"response_format": {"type": "json_object"}} | more)
    made = params(ask, prompt=prompt, dialect=dialect)
    assert (made.grammar_after, made.grammar_unless) == (after, unless)


@pytest.mark.parametrize(
    ("dialect", "form"),
    [("mistral", "[a-zA-Z0-9]{9}"), ("kimi", r"functions\.add:\d+"), ("hermes", "call_[0-9a-f]{24}")],
)
def test_a_call_has_the_id_that_the_model_wrote_or_a_random_one(dialect: str, form: str) -> None:
    calls = [("tool_call", ToolCall("add", {}, id)) for id in ("written", "", "")]
    first, *others = (call.id for call in piece_of(calls, (), (), dialect).tool_calls)
    assert first == "written" and len({*others}) == 2 and all(re.fullmatch(form, id) for id in others)


def called(*ids: str | None) -> dict[str, Any]:
    calls = [{"id": id, "function": {"name": name, "arguments": {}}} for id, name in zip(ids, "fgh", strict=False)]
    return {"role": "assistant", "content": "", "tool_calls": calls}


def test_calls_without_ids_have_some_and_their_results_have_them() -> None:
    result = {"role": "tool", "content": "1"}
    messages = [called("", None), result, result, {"role": "user", "content": "x"}, called(""), result, result]
    named = list(with_ids(messages, "mistral"))
    assert [call["id"] for n in (0, 4) for call in named[n]["tool_calls"]] == ["000000000", "000000001", "000000002"]
    told = [message.get("tool_call_id") for message in named if message["role"] == "tool"]
    assert told == ["000000000", "000000001", "000000002", None] and list(with_ids(named, "mistral")) == named
    assert messages[0]["tool_calls"][1]["id"] is None  # the request's own are left alone


def test_ids_of_another_model_are_taken_as_kimi_writes_them() -> None:
    results = [{"role": "tool", "content": "1", "tool_call_id": id} for id in ("call_b", "functions.f:9", "call_z")]
    named = list(with_ids([called("functions.f:9", "call_b"), *results], "kimi"))
    assert [call["id"] for call in named[0]["tool_calls"]] == ["functions.f:9", "functions.g:1"]
    assert [message["tool_call_id"] for message in named[1:]] == ["functions.g:1", "functions.f:9", "call_z"]


def test_results_go_by_the_names_of_their_functions() -> None:
    given = [{"role": "tool", "content": "1", "name": "g"}, {"role": "tool", "content": "2"}]
    named = list(with_ids([called("functions.f:5", ""), *given], "kimi"))
    assert [message["tool_call_id"] for message in named[1:]] == ["functions.g:1", "functions.f:5"]
