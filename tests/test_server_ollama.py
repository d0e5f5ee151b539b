"""Ollama's routes on a live server with a tiny model."""

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from gmoe.library.demo import bundle
from gmoe.options import RuntimeOptions
from gmoe.server.ask import Refused
from gmoe.server.ollama import duration, keep_alive_of, options_of, parse_chat, parse_generate
from tests.factory import write_model
from tests.live_server import Live, live_server

FEW: dict[str, Any] = {"num_predict": 6, "temperature": 0}
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    home = tmp_path_factory.mktemp("home")
    files = [write_model(home / "tiny.gguf"), write_model(home / "other.gguf", seed=1)]
    with live_server(home, files, RuntimeOptions(context=2048, max_sequences=2)) as live:
        live.never_end("tiny")
        yield live


def test_it_says_that_it_runs(live: Live) -> None:
    assert live.http.get("/").text == "Ollama is running"
    assert live.http.head("/").status_code == 200
    assert live.http.get("/api/version").json()["version"].count(".") == 2


def test_a_stream_is_the_whole_answer_in_lines(live: Live) -> None:
    lines = live.lines("/api/chat", {"model": "tiny", "messages": HELLO, "options": FEW})
    one = live.http.post("/api/chat", json={"model": "tiny", "messages": HELLO, "options": FEW, "stream": False}).json()
    assert "".join(line["message"]["content"] for line in lines) == one["message"]["content"]
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    for last in (lines[-1], one):
        assert last["done_reason"] in ("stop", "length") and last["eval_count"] > 0
        durations = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")
        assert all(isinstance(last[name], int) and last[name] > 0 for name in durations)


def test_generate_goes_on_from_its_context(live: Live) -> None:
    first = live.http.post("/api/generate", json={"model": "tiny", "prompt": "a", "stream": False, "options": FEW})
    context = first.json()["context"]
    again = live.http.post(
        "/api/generate",
        json={"model": "tiny", "prompt": "b", "context": context, "stream": False, "options": FEW},
    ).json()
    assert again["context"][: len(context)] == context
    raw = live.http.post(
        "/api/generate", json={"model": "tiny", "prompt": "a", "raw": True, "stream": False, "options": FEW}
    )
    raw = raw.json()
    assert "context" not in raw and raw["prompt_eval_count"] == 1


def test_an_empty_request_loads_and_unloads(live: Live) -> None:
    for path, said in (
        ("/api/generate", {"response": ""}),
        ("/api/chat", {"message": {"role": "assistant", "content": ""}}),
    ):
        for keep_alive, reason in ((None, "load"), (0, "unload")):
            (line,) = live.lines(path, {"model": "other", "keep_alive": keep_alive})
            assert line.pop("created_at").endswith("Z")
            assert line == {"model": "other", **said, "done": True, "done_reason": reason}
    assert "other:latest" not in live.service.host.running


def test_an_embedding_of_nothing_loads(live: Live) -> None:
    for body in ({}, {"input": None}, {"input": ""}, {"input": []}):
        said = live.http.post("/api/embed", json={"model": "other", "keep_alive": 0} | body)
        assert said.status_code == 200 and said.json()["embeddings"] == []


def test_a_file_of_the_command_line_is_not_in_the_library(live: Live) -> None:
    why = {"error": "model 'tiny' is a file that the server was started with: the library has it not"}
    copied = live.http.post("/api/copy", json={"source": "tiny", "destination": "x"})
    deleted = live.http.request("DELETE", "/api/delete", json={"model": "tiny"})
    made = live.http.post("/api/create", json={"model": "x", "from": "tiny", "stream": False})
    assert [(said.status_code, said.json()) for said in (copied, deleted, made)] == [(400, why)] * 3


@pytest.mark.skipif(not bundle(), reason="no demo model is bundled")
@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"draft_files": {"d.gguf": "sha256:0"}}, "draft models are not supported: gmoe runs a single GGUF file"),
        ({"adapters": {"a.gguf": "sha256:0"}}, "adapters are not supported: gmoe runs a single GGUF file"),
        ({"remote_host": "http://x"}, "remote_host is not supported: models run here"),
        ({"quantization": "q9"}, "q9 is not a type that can be written"),
    ],
)
def test_a_model_that_cannot_be_made_is_refused(live: Live, more: dict[str, Any], why: str) -> None:
    said = live.http.post("/api/create", json={"model": "x", "from": "demo", "stream": False} | more)
    assert said.status_code == 400 and said.json()["error"].startswith(why)


LONG = {"model": "tiny", "prompt": "a", "raw": True}


def test_a_hang_up_ends_the_sequence(live: Live) -> None:
    with httpx.stream("POST", live.url + "/api/generate", json=LONG, timeout=30) as response:
        assert next(response.iter_lines())
    _wait_until_idle(live)


def test_a_hang_up_before_the_first_byte_ends_it_too(live: Live) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(live.url + "/api/generate", json=LONG | {"stream": False}, timeout=0.5)
    _wait_until_idle(live)


def _wait_until_idle(live: Live) -> None:
    llm = live.service.host.running["tiny:latest"].llm
    for _ in range(100):
        if not llm._loop.engine.scheduler.running and not live.service.host.pending:
            break
        time.sleep(0.05)
    else:
        pytest.fail("the sequence still runs")


def chat(**more: Any) -> tuple[str, dict[str, Any]]:
    return "/api/chat", {"model": "tiny", "messages": HELLO} | more


def generate(**more: Any) -> tuple[str, dict[str, Any]]:
    return "/api/generate", {"model": "tiny", "prompt": "x"} | more


GOLDEN = [
    (("/api/chat", ""), 400, "missing request body"),
    (("/api/chat", "[1]"), 400, "the request body must be a JSON object"),
    (("/api/chat", "{} x"), 400, "the request body is not JSON: Extra data: line 1 column 4 (char 3)"),
    (("/api/chat", "{"), 400, "the request body is not JSON: Expecting property name enclosed in double quotes: "
     "line 1 column 2 (char 1)"),
    (("/api/generate", "{}"), 400, "model is required"),
    (chat(model="none"), 404, "model 'none' not found"),
    (chat(model="../../etc/passwd"), 404, "model '../../etc/passwd' not found"),
    (chat(model="/etc/passwd"), 404, "model '/etc/passwd' not found"),
    (chat(messages="x"), 400, "messages: input should be a valid list"),
    (chat(options={"num_ctx": "8"}), 400, 'option "num_ctx" must be of type integer'),
    (chat(options={"temperature": "hot"}), 400, 'option "temperature" must be of type float32'),
    (chat(options={"stop": 3}), 400, 'option "stop" must be of type array'),
    (chat(options={"stop": [1]}), 400, 'option "stop" must be of an array of strings'),
    (chat(options={"top_p": -2}), 400, "top_p is -2.0; it must be between 0 and 1"),
    (chat(logprobs=True, top_logprobs=21), 400, "top_logprobs must be between 0 and 20"),
    (chat(format="xml"), 400, 'invalid format: "xml"; expected "json" or a valid JSON Schema object'),
    (chat(messages=[{"role": "user", "content": "x", "images": ["aGk="]}]), 400, '"tiny" does not support image input'),
    (generate(raw=True, system="y"), 400, "raw mode does not support template, system, or context"),
    (generate(suffix="y"), 400, '"tiny" does not support insert'),
    (generate(keep_alive="soon"), 400, 'time: invalid duration "soon"'),
    (generate(prompt="x" * 3000, truncate=False), 400, "the prompt has 3018 tokens, the context holds 2048"),
]  # fmt: skip


@pytest.mark.parametrize(("request_", "status", "error"), GOLDEN)
def test_errors_before_the_first_byte(live: Live, request_: tuple[str, Any], status: int, error: str) -> None:
    path, body = request_
    response = live.http.post(path, content=body if isinstance(body, str) else json.dumps(body))
    assert (response.status_code, response.json()) == (status, {"error": error})


def test_durations_are_gos() -> None:
    assert [duration(text) for text in ("5m", "1h30m", "-1s", "1.5s", "0", "100ms")] == [300, 5400, -1, 1.5, 0, 0.1]
    assert (keep_alive_of(-1), keep_alive_of(0), keep_alive_of(None)) == (-1.0, 0.0, None)
    with pytest.raises(Refused, match='time: missing unit in duration "5"'):
        duration("5")


def test_options_have_types_and_unknown_ones_a_warning() -> None:
    assert options_of({"stop": "a"}) == ({"stop": ["a"]}, [])
    known, warnings = options_of({"num_predict": 3.0, "seed": None, "stop": ["a"], "moon": 1})
    assert (known, warnings) == ({"num_predict": 3, "stop": ["a"]}, ["invalid option provided: moon"])


def test_parsing_is_pure() -> None:
    ask = parse_chat({"model": "m", "messages": [{"role": "USER", "content": "x"}], "options": {"num_predict": -1}})
    assert ask.messages == [{"role": "user", "content": "x"}] and ask.sampling == {"max_tokens": None} and ask.stream
    off = {"model": "m", "prompt": "x", "options": {"top_p": 2, "typical_p": 1.5, "top_k": -1}}
    assert parse_generate(off).sampling == {"top_p": 1.0, "typical_p": 1.0, "top_k": 0}
    assert parse_generate({"model": "m", "prompt": "x", "format": "json"}).sampling == {
        "json_schema": {"type": "object"}
    }
