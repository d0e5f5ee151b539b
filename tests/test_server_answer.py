"""What counts for an answer: the request before the model's own parameters."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from gmoe.engine.sampling import SamplingParams
from gmoe.library.modelfile import parse_modelfile
from gmoe.server import llama_text, ollama, openai
from gmoe.server.answer import Answer
from gmoe.server.ask import Ask
from gmoe.server.catalog import Entry
from gmoe.server.prompt import Prompt

SAID = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
OWN = "FROM m.gguf\nPARAMETER num_predict 3\nPARAMETER seed 42\n"


def params(ask: Ask, modelfile: str = OWN, seed: int | None = None) -> SamplingParams:
    """With which an answer of 100 tokens at most is made."""
    llm = SimpleNamespace(suggested={}, options=SimpleNamespace(seed=seed))
    entry = Entry("m", Path("m.gguf"), "", 0, 0.0, parse_modelfile(modelfile))
    answer = Answer(llm, entry, ask)  # type: ignore[arg-type]
    return answer._params(Prompt([1], 100, "x"), "plain", False)


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
    ],
)
def test_any_seed_counts_against_the_models_own(ask: Ask) -> None:
    assert (params(ask).max_tokens, params(ask).seed) == (3, None)


def test_answers_to_one_request_have_seeds_of_their_own() -> None:
    parts = llama_text.parse_completion({"prompt": "x", "seed": -1, "n_cmpl": 2}, "m").parts
    assert [params(part, seed=7).seed for part in parts] == [None, 8]  # the first has the engine's
