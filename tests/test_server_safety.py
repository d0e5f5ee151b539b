"""Strangers, large and slow requests, full queues, poisoned neighbours; errors in each dialect's own form."""

import concurrent.futures
import contextlib
import errno
import hashlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gmoe.library.manifest import Library
from gmoe.library.name import ModelName
from gmoe.options import RuntimeOptions
from gmoe.server import anthropic, llama, ollama, openai
from gmoe.server.ask import Refused
from gmoe.server.safety import Limits
from tests.factory import write_model
from tests.live_server import Live, live_server

LONG = {"model": "tiny", "prompt": "a", "raw": True}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    home = tmp_path_factory.mktemp("models")
    return [write_model(home / f"{name}.gguf", seed=seed) for seed, name in enumerate(("tiny", "two", "three"))]


@pytest.fixture(scope="module")
def live(files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    limits = Limits(origins=("https://friend.example",), body_bytes=20_000, body_seconds=0.5)
    options = RuntimeOptions(context=4096, max_sequences=3)
    with live_server(tmp_path_factory.mktemp("home"), files[:1], options, limits, max_queue=3, seconds=3) as live:
        live.never_end("tiny")
        yield live


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost", 200), ("127.0.0.1:1", 200), ("[::1]:5", 200), ("192.168.1.2", 200), ("box.local", 200)]
    + [("evil.example", 403), ("127.0.0.1.evil.example", 403), ("localhost.evil.example", 403), ("8.8.8.8", 403)],
)
def test_names_of_strangers_are_refused(live: Live, host: str, status: int) -> None:
    response = live.http.get("/api/version", headers={"host": host})
    assert response.status_code == status and (status == 200 or response.content == b"")


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:3000", 200),
        ("https://127.0.0.1", 200),
        ("app://obsidian.md", 200),
        ("vscode-webview://x", 200),
    ]
    + [
        ("https://friend.example", 200),
        ("https://evil.example", 403),
        ("http://localhost.evil.example", 403),
        ("null", 403),
    ],
)
def test_pages_of_strangers_are_refused(live: Live, origin: str, status: int) -> None:
    response = live.http.get("/api/version", headers={"origin": origin})
    assert response.status_code == status
    assert response.headers.get("access-control-allow-origin") == (origin if status == 200 else None)


def test_a_browser_may_ask_beforehand(live: Live) -> None:
    asked = {"origin": "http://localhost", "access-control-request-headers": "authorization, x-stainless-os, evil"}
    response = live.http.options("/v1/chat/completions", headers=asked)
    assert response.status_code == 204
    assert response.headers["access-control-allow-headers"] == "authorization, x-stainless-os"


def test_a_large_body_is_refused_whether_it_says_so_or_not(live: Live) -> None:
    response = live.http.post("/api/chat", content=b"x" * 20_001)
    assert (response.status_code, response.json()) == (413, {"error": "the request body is larger than 20000 bytes"})
    response = live.http.post("/v1/messages", content=(b"x" * 5000 for _ in range(5)))
    error = {"type": "request_too_large", "message": "the request body is larger than 20000 bytes"}
    assert (response.status_code, response.json()) == (413, {"type": "error", "error": error})


def test_a_body_that_stalls_is_refused(live: Live) -> None:
    port = int(live.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as slow:
        slow.sendall(b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{")
        answer = slow.recv(4096)
    assert b"408" in answer.split(b"\r\n")[0]


def test_a_client_that_goes_while_it_speaks_is_not_logged(live: Live, caplog: pytest.LogCaptureFixture) -> None:
    port = int(live.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as gone:
        gone.sendall(b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{")
        time.sleep(0.1)
    time.sleep(0.1)
    assert live.http.get("/health").status_code == 200
    assert not caplog.records


def test_no_path_is_opened(live: Live, tmp_path: Path) -> None:
    file = write_model(tmp_path / "secret.gguf")
    for name in (str(file), f"../{file.name}", f"file://{file}", str(file).lstrip("/")):
        for path, body in (("show", {"model": name}), ("chat", {"model": name, "messages": []})):
            assert live.http.post(f"/api/{path}", json=body).status_code == 404
        created = live.http.post("/api/create", json={"model": "x", "from": name, "stream": False})
        assert created.status_code in (400, 404), created.text
    for digest in ("sha256:../../etc/passwd", "..%2f..%2fetc%2fpasswd", "sha256-" + "0" * 63 + "/"):
        assert live.http.head(f"/api/blobs/{digest}").status_code in (400, 404)
    files = {"model": "x", "files": {"a": "../../etc/passwd"}, "stream": False}
    assert live.http.post("/api/create", json=files).status_code == 400


def test_a_blob_that_is_no_model_makes_none(live: Live) -> None:
    content = b"not a GGUF file"
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert live.http.post(f"/api/blobs/{digest}", content=content).status_code == 201
    refused = live.http.post("/api/create", json={"model": "x", "files": {"a.gguf": digest}, "stream": False})
    assert refused.status_code == 400 and "is not a valid GGUF file" in refused.json()["error"]
    assert live.http.post("/api/show", json={"model": "x"}).status_code == 404


def test_an_api_key(files: list[Path], tmp_path: Path) -> None:
    with live_server(tmp_path, files[:1], limits=Limits(api_key="s3cret")) as live:
        assert live.http.get("/health").status_code == live.http.get("/").status_code == 200
        refused = live.http.get("/v1/models")
        assert refused.status_code == 401
        assert refused.json()["error"] == {
            "message": "invalid API key", "type": "authentication_error", "param": None, "code": None,
        }  # fmt: skip
        for headers in ({"authorization": "Bearer s3cret"}, {"x-api-key": "s3cret"}):
            assert live.http.get("/v1/models", headers=headers).status_code == 200
        assert live.http.get("/v1/models", headers={"authorization": "Bearer s3cre"}).status_code == 401


def test_a_full_queue_is_503_and_a_long_answer_504(live: Live) -> None:
    def ask(stream: bool) -> httpx.Response:
        return httpx.post(live.url + "/api/generate", json=LONG | {"stream": stream}, timeout=30)

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(ask, stream) for stream in (False, False, True)]
        _until(lambda: live.service.host.answering == 3)
        waiting = [pool.submit(ask, False) for _ in range(3)]
        _until(lambda: live.service.host.pending == 6)
        assert "llamacpp:requests_deferred 3" in live.http.get("/metrics").text
        full = ask(False)
        openai_full = live.http.post("/v1/completions", json={"model": "tiny", "prompt": "a"})
        whole, _, streamed = (one.result() for one in asked)
    words = "server busy, please try again.  maximum pending requests exceeded"
    assert (full.status_code, full.json()) == (503, {"error": words})
    assert openai_full.json()["error"]["type"] == "api_error" and openai_full.status_code == 503
    slow = {"error": "the answer took longer than 3 seconds"}
    assert (whole.status_code, whole.json()) == (504, slow)
    assert streamed.status_code == 200 and json.loads(streamed.text.splitlines()[-1]) == slow
    assert {one.result().status_code for one in waiting} == {504}
    _until(lambda: live.service.host.pending == 0)


def test_a_poisoned_request_harms_no_other(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = live.service.host.running["tiny:latest"].llm
    run = llm.run

    def poisoned(ids: Any, params: Any, *more: Any, **named: Any) -> Any:
        stream = run(ids, params, *more, **named)
        if params.seed == 666:
            sample = stream._seq.sampler.sample

            def fail(logits: Any, context: Any) -> int:
                if len(context) > 6:
                    raise ValueError("the model gave logits that are not numbers")
                return int(sample(logits, context))

            stream._seq.sampler.sample = fail
        return stream

    monkeypatch.setattr(llm, "run", poisoned)

    def ask(path: str = "/api/generate", **more: Any) -> httpx.Response:
        body = {"model": "tiny", "prompt": "abc", "raw": True, "stream": False, "options": {"num_predict": 40}}
        return httpx.post(live.url + path, json=body | more, timeout=30)

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        good = pool.submit(ask, options={"num_predict": 40, "seed": 1})
        bad = pool.submit(ask, options={"num_predict": 40, "seed": 666})
        wrong = pool.submit(ask, "/completion", grammar="root ::= nothing", n_predict=3)
        assert good.result().json()["eval_count"] == 40
        assert bad.result().json() == {"error": "the model gave logits that are not numbers"}
        assert wrong.result().status_code == 400 and "grammar" in wrong.result().json()["error"]["message"]
    late = ask(stream=True, options={"num_predict": 40, "seed": 666})
    lines = [json.loads(line) for line in late.text.splitlines()]
    assert late.status_code == 200 and "response" in lines[0]
    assert lines[-1] == {"error": "the model gave logits that are not numbers"}


def test_the_longest_unused_model_makes_room(files: list[Path], tmp_path: Path) -> None:
    with live_server(tmp_path, files, max_loaded=2, keep_alive=60) as live:
        for name in ("tiny", "two", "tiny", "three"):
            live.lines("/api/generate", {"model": name})
        assert sorted(live.service.host.running) == ["three:latest", "tiny:latest"]
        live.lines("/api/generate", {"model": "three", "keep_alive": "200ms"})
        _until(lambda: sorted(live.service.host.running) == ["tiny:latest"])
        names = [model["name"] for model in live.http.get("/api/ps").json()["models"]]
        assert names == ["tiny:latest"]
        assert "llamacpp:requests_processing 0" in live.http.get("/metrics").text


def test_a_model_is_the_same_in_any_letters_and_lives_on_without_its_name(tmp_path: Path) -> None:
    with live_server(tmp_path, []) as live:
        live.http.post("/api/copy", json={"source": "Demo", "destination": "Own"})
        for name in ("own", "OWN", "Own:latest", "DEMO"):
            live.lines("/api/generate", {"model": name})
        assert len(live.service.host.loaded) == 1, "demo is another name of the same"
        library = live.service.host.catalog.library
        library.remove(ModelName.parse("oWN"))  # as another process may
        named = {model["name"]: model["details"]["family"] for model in live.http.get("/api/ps").json()["models"]}
        assert named == {"Own:latest": "qwen3moe", "demo:latest": "qwen3moe"}


def test_uploads_that_stall_keep_nobody_else_waiting(live: Live) -> None:
    address = live.url.removeprefix("http://").split(":")
    head = f"POST /api/blobs/sha256:{'1' * 64} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\nbegin"
    stalled = [socket.create_connection((address[0], int(address[1]))) for _ in range(40)]
    for client in stalled:
        client.sendall(head.encode())
    _until(lambda: len(live.service.uploads._pool._threads) >= 40)
    assert live.http.get("/api/tags", timeout=2).status_code == 200
    for client in stalled:
        client.close()


def test_vectors_that_nobody_wants_are_not_computed(live: Live) -> None:
    live.lines("/api/generate", {"model": "tiny"})
    running = live.service.host.running["tiny:latest"]
    embed, asked, go = running.llm.embed, list[int](), threading.Event()

    def slow(ids: list[int], how: str) -> Any:
        asked.append(len(ids))
        go.wait(20)
        return embed(ids, how)

    running.llm.embed = slow
    with contextlib.suppress(httpx.ReadTimeout):
        live.http.post("/api/embed", json={"model": "tiny", "input": ["a"] * 50}, timeout=0.3)
    _until(lambda: bool(asked))
    time.sleep(0.2)  # until the server has seen that its client is gone
    go.set()
    _until(lambda: not running.users)
    running.llm.embed = embed
    assert len(asked) < 50


def test_a_full_disk_ends_a_stream_with_its_sentence(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(live.service.host.catalog.library, "put_blob", full)
    lines = live.lines("/api/create", {"model": "x", "from": "demo", "system": "y"})
    assert "No space left on device" in lines[-1]["error"]


def test_a_model_that_cannot_be_loaded_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + b"\0" * 50)
    with live_server(tmp_path, [tmp_path / "broken.gguf"]) as live:
        response = live.http.post("/api/generate", json={"model": "broken", "prompt": "x"})
        assert response.status_code == 500 and "broken.gguf" in response.json()["error"]
        assert live.http.get("/api/tags").status_code == 200 and not live.service.host.running


def test_files_of_one_name_are_refused(tmp_path: Path) -> None:
    from gmoe.server.catalog import Catalog

    with pytest.raises(ValueError, match="would both be called a:latest"):
        Catalog.of(Library(tmp_path), [tmp_path / "x" / "a.gguf", tmp_path / "y" / "a.gguf"])


ERROR = Refused(404, "model 'x' not found")
LATE = {
    ollama: b'{"error":"model \'x\' not found"}\n',
    openai: b'data: {"error":{"message":"model \'x\' not found","type":"not_found_error",'
    b'"param":null,"code":null}}\n\n',
    anthropic: b'event: error\ndata: {"type":"error","error":{"type":"not_found_error",'
    b'"message":"model \'x\' not found"}}\n\n',
    llama: b'data: {"error":{"code":404,"message":"model \'x\' not found","type":"not_found_error"}}\n\n',
}


@pytest.mark.parametrize("dialect", LATE, ids=lambda one: one.__name__)
def test_errors_after_the_first_byte(dialect: Any) -> None:
    assert dialect.encode(dialect.refuse(ERROR, True)) == LATE[dialect]


def test_unknown_paths_and_methods(live: Live) -> None:
    assert live.http.get("/api/nothing").json() == {"error": "404 page not found"}
    wrong = live.http.get("/api/chat")
    assert (wrong.status_code, wrong.json()) == (405, {"error": "405 method not allowed"})
    assert live.http.get("/v1/nothing").json()["error"]["type"] == "not_found_error"


def _until(holds: Any, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)
