"""serve, ps and stop: addresses, a server in a process of its own, and Ollama's columns."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import uvicorn
from click.testing import CliRunner, Result

from gmoe.cli.main import cli
from gmoe.cli.ps import row, until_of
from gmoe.cli.serve import address, is_loopback
from tests.factory import write_model
from tests.live_server import Live, live_server


def gmoe(*args: str) -> Result:
    return CliRunner().invoke(cli, args)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("", ("127.0.0.1", 11435)),
        ("0.0.0.0", ("0.0.0.0", 11435)),
        (":8080", ("127.0.0.1", 8080)),
        ("http://10.0.0.1:99/", ("10.0.0.1", 99)),
        ("[::1]:5", ("::1", 5)),
        ("::1", ("::1", 11435)),
    ],
)
def test_where_to_listen(monkeypatch: pytest.MonkeyPatch, text: str, where: tuple[str, int]) -> None:
    monkeypatch.setenv("GMOE_HOST", text)
    assert address(None, None) == where
    assert address("h", 1) == ("h", 1)
    assert is_loopback(where[0]) == (where[0] in ("127.0.0.1", "::1"))


def test_a_wrong_address_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GMOE_HOST", "here:there")
    result = gmoe("ps")
    assert result.exit_code == 1
    assert result.stderr == "Error: GMOE_HOST is 'here:there'; its port must be a number below 65536\n"
    monkeypatch.setenv("GMOE_HOST", "127.0.0.1:9")
    assert gmoe("serve", "--keep-alive", "soon").exit_code == 2
    words = "could not connect to a gmoe server at http://127.0.0.1:9; run 'gmoe serve' to start it"
    assert gmoe("ps").stderr == f"Error: {words}\n"


@pytest.mark.parametrize(
    ("flags", "status", "sentence"),
    [
        ("--evict nonsense", 2, "evict='nonsense' is not available in this version; available: auto, "),
        ("--device cpu --gpu-memory 80%", 2, "gpu_memory='80%' needs device='cuda'"),
        ("--quality high --miss skip", 2, "quality and max_kld choose the lossy policies; miss='skip' cannot be given"),
        ("--policy zz=1", 2, "policy: no knob is called 'zz'; the chosen policies have none"),
        ("--miss hobbit --policy t1=7", 2, "the knob t1 is 7; it must be a number from 0 to 1"),
        ("--max-body soon", 2, "--max-body is 'soon'; it must be auto, an amount"),
        ("--max-loaded 0", 2, "Invalid value for '--max-loaded': 0 is not in the range x>=1."),
        ("--trace nowhere.trace", 1, "nowhere.trace: there is no such file"),
        ("--device cuda:99", 1, "device='cuda:99' "),
    ],
)
def test_what_no_load_would_accept_is_refused_at_the_start(
    flags: str, status: int, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GMOE_HOME", str(tmp_path))
    monkeypatch.setattr(uvicorn.Server, "run", lambda server, sockets: None)
    refused = gmoe("serve", "--port", "0", *flags.split())
    assert refused.exit_code == status and f"Error: {sentence}" in refused.stderr, refused.output


def test_clients_close_idle_connections_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    configs = list[uvicorn.Config]()

    def run(server: uvicorn.Server, sockets: list[socket.socket]) -> None:
        configs.append(server.config)
        sockets[0].close()

    monkeypatch.setattr(uvicorn.Server, "run", run)
    monkeypatch.setenv("GMOE_HOME", str(tmp_path))
    assert gmoe("serve", "--port", "0").exit_code == 0
    patience = httpx.Limits().keepalive_expiry
    assert patience and configs[0].timeout_keep_alive > 2 * patience


@pytest.fixture
def live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Live]:
    with live_server(tmp_path, [write_model(tmp_path / "tiny.gguf")]) as live:
        monkeypatch.setenv("GMOE_HOST", live.url)
        yield live


def test_ps_and_stop(live: Live) -> None:
    assert gmoe("ps").stdout == "NAME    ID    SIZE    PROCESSOR    CONTEXT    UNTIL\n"
    live.lines("/api/generate", {"model": "tiny"})
    head, line = gmoe("ps").stdout.splitlines()
    pattern = r"tiny:latest    [0-9a-f]{12}    \d+ KB    100% CPU     256        [45] minutes from now"
    assert head.split() == ["NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"] and re.fullmatch(pattern, line), line
    assert gmoe("ps", "other").stdout.count("\n") == 1
    assert gmoe("stop", "tiny").exit_code == 0 and not live.service.host.running
    result = gmoe("stop", "none")
    assert (result.exit_code, result.stderr) == (1, 'Error: couldn\'t find model "none" to stop\n')


def test_ollamas_words() -> None:
    now = datetime.now(UTC)
    for seconds, words in ((90, "1 minute from now"), (7200, "2 hours from now"), (30, "30 seconds from now")):
        assert until_of(now + timedelta(seconds=seconds), now) == words
    assert until_of(datetime(2318, 1, 1, tzinfo=UTC), now) == "Forever"
    model = {"name": "a", "digest": "0" * 64, "size": 100, "context_length": 8, "expires_at": now.isoformat()}
    assert row(model | {"size_vram": 52}, now)[3] == "48%/52% CPU/GPU"
    assert row(model | {"size_vram": 100, "stopping": True}, now)[3:] == ("100% GPU", "8", "Stopping...")


def test_a_server_in_its_own_process(tmp_path: Path) -> None:
    model = write_model(tmp_path / "tiny.gguf")
    command = [str(Path(sys.executable).with_name("gmoe")), "serve", str(model), "--port", "0", "--context", "128"]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "GMOE_HOME": str(tmp_path)}
    )
    assert process.stderr is not None
    try:
        found = re.fullmatch(r"gmoe is listening on (http://127\.0\.0\.1:\d+)\n", process.stderr.readline())
        assert found
        answer = httpx.post(
            found[1] + "/api/generate", json={"model": "tiny", "prompt": "x", "stream": False}, timeout=60
        )
        assert answer.json()["done"]
        port = found[1].rpartition(":")[2]
        taken = gmoe("serve", "--port", port)
        words = f"Error: cannot listen on 127.0.0.1:{port}: Address already in use\n"
        assert (taken.exit_code, taken.stderr) == (1, words)
    finally:
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=20)
    assert process.returncode in (0, 130) and rest == ""
