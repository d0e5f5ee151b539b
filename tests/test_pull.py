"""pull against a registry on loopback that cuts, lies and forgets ranges."""

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from gmoe.library.manifest import CONFIG_TYPE, OLLAMA_TYPE, Layer, Library, LibraryError, Manifest, ModelNotFound
from gmoe.library.name import ModelName
from gmoe.library.pull import pull
from gmoe.library.registry import Progress, RegistryError

WEIGHTS = np.random.default_rng(0).bytes(300_000)
CONFIG = b'{"model_family":"x"}'


def layer_of(content: bytes, media_type: str) -> Layer:
    return Layer(media_type, f"sha256:{hashlib.sha256(content).hexdigest()}", len(content))


CONFIG_LAYER, MODEL_LAYER = layer_of(CONFIG, CONFIG_TYPE), layer_of(WEIGHTS, OLLAMA_TYPE + "model")


@dataclass
class Registry:
    """What it serves and how it misbehaves; `asked` are the (path, Range) of all requests."""

    port: int = 0
    manifest: bytes = Manifest(CONFIG_LAYER, (MODEL_LAYER,)).to_bytes() + b"\n"
    blobs: dict[str, bytes] = field(default_factory=lambda: {CONFIG_LAYER.digest: CONFIG, MODEL_LAYER.digest: WEIGHTS})
    cut_after: int = 0  # bytes of the weights after which the connection ends, `cuts` times
    cuts: int = 0
    ranges: bool = True
    wrong_range: bool = False
    redirect: bool = False
    asked: list[tuple[str, str]] = field(default_factory=list)

    @property
    def name(self) -> ModelName:
        return ModelName.parse(f"127.0.0.1:{self.port}/me/model:tag")

    def ranges_asked(self) -> list[str]:
        return [span for path, span in self.asked if path.endswith(MODEL_LAYER.digest)]


def answer(registry: Registry, request: BaseHTTPRequestHandler) -> None:
    span = request.headers.get("Range", "")
    registry.asked.append((request.path, span))
    digest = request.path.rpartition("/")[2]
    if request.path == "/v2/me/model/manifests/tag":
        body = registry.manifest
    elif digest in registry.blobs and registry.redirect and request.path.startswith("/v2/"):
        request.send_response(307)
        request.send_header("Location", f"/elsewhere/{digest}")
        request.send_header("Content-Length", "0")
        request.end_headers()
        return
    elif digest in registry.blobs:
        body = registry.blobs[digest]
    else:
        request.send_error(404)
        return
    start = int(span.removeprefix("bytes=").removesuffix("-")) if span and registry.ranges else 0
    request.send_response(206 if start else 200)
    if start:
        request.send_header("Content-Range", f"bytes {start + registry.wrong_range}-{len(body) - 1}/{len(body)}")
    request.send_header("Content-Length", str(len(body) - start))
    request.end_headers()
    if registry.cuts and len(body) > 1000:
        registry.cuts -= 1
        request.wfile.write(body[start : start + registry.cut_after])
        request.close_connection = True
    else:
        request.wfile.write(body[start:])


@pytest.fixture
def registry() -> Iterator[Registry]:
    shared = Registry()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(shared, self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    shared.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield shared
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(tmp_path / "models")


def files(library: Library) -> dict[str, int]:
    return {path.name[-8:]: path.stat().st_size for path in (library.root / "blobs").iterdir()}


def test_a_model_arrives_whole_with_the_registry_s_digest(library: Library, registry: Registry) -> None:
    steps: list[Progress] = []
    manifest = pull(library, registry.name, steps.append, insecure=True)
    assert library.model_path(registry.name).read_bytes() == WEIGHTS
    assert manifest.digest == hashlib.sha256(registry.manifest).hexdigest()
    words = list(dict.fromkeys(step.status.split()[0] for step in steps))
    assert words == ["pulling", "verifying", "writing", "removing", "success"]
    counts = [step.completed for step in steps if step.status == f"pulling {MODEL_LAYER.digest[7:19]}"]
    assert counts == sorted(counts) and counts[-1] == MODEL_LAYER.size


def test_what_is_here_is_not_fetched_again(library: Library, registry: Registry) -> None:
    library.put_blob(WEIGHTS, "t")
    pull(library, registry.name, insecure=True)
    pull(library, registry.name, insecure=True)
    assert registry.ranges_asked() == []
    assert len(registry.asked) == 3


def test_cuts_are_survived_within_one_pull(library: Library, registry: Registry) -> None:
    registry.cut_after, registry.cuts = 70_000, 4
    pull(library, registry.name, insecure=True)
    assert library.model_path(registry.name).read_bytes() == WEIGHTS
    asked = registry.ranges_asked()
    starts = [int(span[6:-1]) for span in asked[1:]]
    assert len(asked) == 5 and starts == sorted(starts) and starts[-1] > 0


def test_a_later_pull_goes_on_where_one_gave_up(library: Library, registry: Registry) -> None:
    partial = library.root / "blobs" / f"sha256-{MODEL_LAYER.digest[7:]}-partial"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(WEIGHTS[:123_456])
    library.prune()
    pull(library, registry.name, insecure=True)
    assert registry.ranges_asked() == ["bytes=123456-"]
    assert library.model_path(registry.name).read_bytes() == WEIGHTS
    assert not partial.exists()


def test_a_registry_that_always_cuts_ends_in_a_sentence(library: Library, registry: Registry) -> None:
    registry.cut_after, registry.cuts = 0, 1000
    with pytest.raises(RegistryError, match="pull again to go on from here"):
        pull(library, registry.name, insecure=True)
    assert len(registry.ranges_asked()) == 3
    with pytest.raises(ModelNotFound):
        library.resolve(registry.name)


def test_a_registry_without_ranges_sends_all_again(library: Library, registry: Registry) -> None:
    registry.ranges, registry.cut_after, registry.cuts = False, 70_000, 1
    pull(library, registry.name, insecure=True)
    assert library.model_path(registry.name).read_bytes() == WEIGHTS


def test_another_range_is_refused(library: Library, registry: Registry) -> None:
    registry.wrong_range, registry.cut_after, registry.cuts = True, 70_000, 1
    with pytest.raises(RegistryError, match="another range"):
        pull(library, registry.name, insecure=True)


def test_wrong_bytes_are_thrown_away_and_the_old_model_stays(library: Library, registry: Registry) -> None:
    before = pull(library, registry.name, insecure=True)
    new = layer_of(b"n" * 5000, OLLAMA_TYPE + "model")
    registry.manifest = Manifest(CONFIG_LAYER, (new,)).to_bytes()
    registry.blobs[new.digest] = b"m" * 5000
    with pytest.raises(RegistryError, match="digest mismatch"):
        pull(library, registry.name, insecure=True)
    assert library.resolve(registry.name).digest == before.digest
    assert sorted(files(library).values()) == [len(CONFIG), len(WEIGHTS)]
    registry.blobs[new.digest] = b"n" * 5000
    pull(library, registry.name, insecure=True)
    assert sorted(files(library).values()) == [len(CONFIG), 5000]


def test_more_bytes_than_promised_are_not_stored(library: Library, registry: Registry) -> None:
    registry.blobs[MODEL_LAYER.digest] = WEIGHTS + b"more"
    with pytest.raises(RegistryError, match="is longer than the 300000 bytes"):
        pull(library, registry.name, insecure=True)


def test_redirected_blobs(library: Library, registry: Registry) -> None:
    registry.redirect = True
    pull(library, registry.name, insecure=True)
    assert library.model_path(registry.name).read_bytes() == WEIGHTS


def test_absent_and_damaged(library: Library, registry: Registry) -> None:
    with pytest.raises(RegistryError, match="file does not exist: .*me/other:latest"):
        pull(library, ModelName.parse(f"127.0.0.1:{registry.port}/me/other"), insecure=True)
    for damaged in (b"<html>", b'{"config":{"mediaType":"t","digest":"sha256:../../x","size":1},"layers":[]}'):
        registry.manifest = damaged
        with pytest.raises(LibraryError, match="is not a manifest|is not a digest"):
            pull(library, registry.name, insecure=True)
    del registry.blobs[MODEL_LAYER.digest]
    registry.manifest = Registry.manifest
    with pytest.raises(RegistryError, match="answered 404"):
        pull(library, registry.name, insecure=True)
    assert library.models() == []


def test_nobody_there(library: Library) -> None:
    with pytest.raises(RegistryError, match="pull model manifest: 127.0.0.1:9"):
        pull(library, ModelName.parse("127.0.0.1:9/me/model"), insecure=True)


def test_two_pulls_at_once(library: Library, registry: Registry) -> None:
    threads = [
        threading.Thread(target=pull, args=(library, registry.name), kwargs={"insecure": True}) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert library.model_path(registry.name).read_bytes() == WEIGHTS
    assert registry.ranges_asked() == [""]
    assert sorted(files(library).values()) == [len(CONFIG), len(WEIGHTS)]
