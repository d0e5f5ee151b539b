"""Registries that want a token, ranges side by side, push, and the hub: all on loopback."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_registry import FakeRegistry, digest_of, serving
from test_gguf import write_split

from gmoe.gguf.file import GGUFFile
from gmoe.library import fetch as fetching
from gmoe.library import push as pushing
from gmoe.library.create import create
from gmoe.library.huggingface import RemoteFile, choose, pull_repository
from gmoe.library.manifest import LOCK, OLLAMA_TYPE, Layer, Library, LibraryError, Manifest
from gmoe.library.modelfile import parse_modelfile
from gmoe.library.name import ModelName
from gmoe.library.pull import pull
from gmoe.library.push import push
from gmoe.library.registry import Progress, Registry, RegistryError, login_of, reason
from tests.factory import write_model

WEIGHTS = np.random.default_rng(0).bytes(300_000)
CONFIG = b'{"model_family":"x"}'


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with serving() as registry:
        yield registry


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(tmp_path / "home" / "models")


def offer(registry: FakeRegistry, repository: str = "me/model", weights: bytes = WEIGHTS) -> ModelName:
    layers = [Layer(f"t{n}", digest_of(content), len(content)) for n, content in enumerate((CONFIG, weights))]
    for content in (CONFIG, weights):
        registry.blobs[repository, digest_of(content)] = content
    model = layers[1]._replace(media_type=OLLAMA_TYPE + "model")
    registry.manifests[repository, "latest"] = Manifest(layers[0], (model,)).to_bytes()
    return ModelName.parse(f"{registry.host}/{repository}")


def stored(library: Library, name: ModelName, weights: bytes = WEIGHTS) -> Manifest:
    with library.adding():
        config, model = library.put_blob(CONFIG, "c"), library.put_blob(weights, OLLAMA_TYPE + "model")
        library.write(name, Manifest(config, (model,)))
    return library.resolve(name)


def login(library: Library, registry: FakeRegistry, **words: str) -> None:
    library.root.parent.mkdir(parents=True, exist_ok=True)
    (library.root.parent / "auth.json").write_text(json.dumps({registry.host: words}))


def test_a_token_is_fetched_once(library: Library, registry: FakeRegistry) -> None:
    registry.token = "secret"
    name = offer(registry)
    pull(library, name, insecure=True)
    assert library.model_path(name).read_bytes() == WEIGHTS
    assert registry.count("GET", "/token") == 1
    asked = next(path for _, path, _ in registry.asked if path.startswith("/token"))
    assert asked == "/token?service=fake&scope=repository%3Ax%3Apull%2Cpush"


def test_a_login_goes_to_the_one_who_gives_tokens(library: Library, registry: FakeRegistry) -> None:
    registry.token, registry.login = "secret", "Basic " + base64.b64encode(b"me:pass").decode()
    name = offer(registry)
    with pytest.raises(RegistryError, match="gave no token: 401"):
        pull(library, name, insecure=True)
    login(library, registry, username="me", password="pass")
    pull(library, name, insecure=True)
    assert library.model_path(name).read_bytes() == WEIGHTS


def test_a_token_of_one_s_own(library: Library, registry: FakeRegistry) -> None:
    registry.token = "mine"
    login(library, registry, token="mine")
    pull(library, offer(registry), insecure=True)
    assert registry.count("GET", "/token") == 0


def test_a_refused_token_is_one_sentence(library: Library, registry: FakeRegistry) -> None:
    name = offer(registry)
    registry.token, registry.login = "x", "y"
    with pytest.raises(RegistryError, match=r"/token gave no token: 401 Unauthorized$"):
        pull(library, name, insecure=True)
    (library.root.parent / "auth.json").write_text("no JSON")
    with pytest.raises(RegistryError, match="auth.json is not a JSON object"):
        pull(library, name, insecure=True)


@pytest.mark.parametrize("cuts", [0, 7])
def test_ranges_side_by_side(
    library: Library, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch, cuts: int
) -> None:
    monkeypatch.setattr(fetching, "SEGMENT", 40_000)
    name, steps = offer(registry), list[Progress]()
    registry.cuts = cuts
    pull(library, name, steps.append, insecure=True)
    assert library.model_path(name).read_bytes() == WEIGHTS
    asked = [headers.get("Range") for _, path, headers in registry.asked if digest_of(WEIGHTS) in path]
    assert len(asked) == 8 + cuts and {"bytes=0-39999", "bytes=280000-299999"} <= set(asked)
    counts = [step.completed for step in steps if step.digest == digest_of(WEIGHTS)]
    assert counts == sorted(counts) and counts[-1] == len(WEIGHTS)


def test_side_by_side_goes_on_where_one_was_killed(
    library: Library, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "SEGMENT", 40_000)
    partial = library.root / "blobs" / f"sha256-{digest_of(WEIGHTS)[7:]}-partial"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(WEIGHTS[:123_456])
    pull(library, offer(registry), insecure=True)
    asked = [headers["Range"] for _, path, headers in registry.asked if digest_of(WEIGHTS) in path]
    assert min(int(span[6:].partition("-")[0]) for span in asked) == 123_456
    assert not partial.exists()


def test_a_registry_without_ranges_is_asked_for_all(
    library: Library, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "SEGMENT", 40_000)
    registry.ranges = False
    name = offer(registry)
    pull(library, name, insecure=True)
    assert library.model_path(name).read_bytes() == WEIGHTS


def test_a_blob_that_is_not_there_ends_side_by_side_too(
    library: Library, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "SEGMENT", 40_000)
    name = offer(registry)
    del registry.blobs["me/model", digest_of(WEIGHTS)]
    with pytest.raises(RegistryError, match="answered 404 Not Found: not here"):
        pull(library, name, insecure=True)


def test_wrong_bytes_side_by_side(library: Library, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "SEGMENT", 40_000)
    name = offer(registry)
    registry.blobs["me/model", digest_of(WEIGHTS)] = WEIGHTS[:-1] + b"x"
    with pytest.raises(RegistryError, match="digest mismatch"):
        pull(library, name, insecure=True)
    assert not [path for path in (library.root / "blobs").iterdir() if path.name.endswith("-partial")]


@pytest.mark.parametrize("token", ["", "secret"])
def test_push_and_pull_are_inverse(library: Library, registry: FakeRegistry, tmp_path: Path, token: str) -> None:
    registry.token = token
    name, steps = ModelName.parse(f"{registry.host}/me/mine:v1"), list[Progress]()
    manifest = stored(library, name)
    push(library, name, steps.append, insecure=True)
    other = Library(tmp_path / "other")
    assert pull(other, name, insecure=True).digest == manifest.digest
    assert other.model_path(name).read_bytes() == WEIGHTS
    words = list(dict.fromkeys(step.status for step in steps))
    digests = [digest_of(WEIGHTS), digest_of(CONFIG)]
    pushed = [f"pushing {digest[7:19]}" for digest in digests]
    assert words == ["retrieving manifest", *pushed, "pushing manifest", "success"]
    posts = registry.count("POST", "uploads")
    push(library, name, insecure=True)
    assert registry.count("POST", "uploads") == posts


def test_a_library_that_cannot_be_written_is_pushed_from_and_says_so_else(
    library: Library, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = ModelName.parse(f"{registry.host}/me/mine")
    manifest = stored(library, name)
    really = open

    def read_only(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:  # tests of root may write anywhere
        if str(file).endswith(LOCK) and mode != "r":
            raise PermissionError(13, "Permission denied", str(file))
        return really(file, mode, *rest, **named)

    monkeypatch.setattr("builtins.open", read_only)
    push(library, name, insecure=True)
    assert registry.blobs["me/mine", digest_of(WEIGHTS)] == WEIGHTS
    assert library.resolve(name) == manifest and library.prune() == []
    sentence = f"^the library {library.root} cannot be written: Permission denied$"
    for write in (lambda: library.copy(name, ModelName.parse("other")), lambda: pull(library, name, insecure=True)):
        with pytest.raises(LibraryError, match=sentence):
            write()
    with Library(library.root / "nothing" / "there").reading():
        assert not (library.root / "nothing").exists()


def test_the_way_to_a_registry_is_told_without_numbers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert reason(OSError(-2, "Name or service not known")) == "Name or service not known"
    assert reason(TimeoutError()) == "TimeoutError"
    monkeypatch.setenv("ALL_PROXY", "nonsense://proxy")
    with pytest.raises(RegistryError, match="https://registry.example/ cannot be asked through the proxy of the env"):
        Registry("https://registry.example/")
    with pytest.raises(RegistryError, match="cannot be read: Is a directory"):
        login_of(tmp_path, "a")
    (tmp_path / "file").write_text("x")
    assert login_of(tmp_path / "file" / "auth.json", "a") == {}


def test_a_cut_upload_goes_on(library: Library, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pushing, "PIECE", 50_000)
    name = ModelName.parse(f"{registry.host}/me/mine")
    stored(library, name)
    registry.cut_uploads, registry.short_upload = 2, 20_000
    push(library, name, insecure=True)
    assert registry.blobs["me/mine", digest_of(WEIGHTS)] == WEIGHTS
    assert registry.count("GET", "uploads/u0") == 2


def test_a_registry_that_always_cuts_uploads_is_one_sentence(library: Library, registry: FakeRegistry) -> None:
    name = ModelName.parse(f"{registry.host}/me/mine")
    stored(library, name)
    registry.cut_uploads = 100
    with pytest.raises(RegistryError, match="push model: 127.0.0.1:"):
        push(library, name, insecure=True)
    assert not registry.manifests


def test_what_the_registry_has_elsewhere_is_mounted(library: Library, registry: FakeRegistry) -> None:
    base = offer(registry, "me/base")
    pull(library, base, insecure=True)
    name = ModelName.parse(f"{registry.host}/you/mine")
    library.copy(base, name)
    push(library, name, insecure=True)
    assert registry.blobs["you/mine", digest_of(WEIGHTS)] == WEIGHTS
    assert registry.count("PATCH") == 0


def test_a_refused_blob_is_one_sentence(library: Library, registry: FakeRegistry) -> None:
    name = ModelName.parse(f"{registry.host}/me/mine")
    stored(library, name)
    registry.lies = True
    with pytest.raises(RegistryError, match="400 Bad Request: provided digest did not match uploaded content$"):
        push(library, name, insecure=True)
    with pytest.raises(LibraryError, match="not found"):
        push(library, ModelName.parse("none"), insecure=True)
    with pytest.raises(RegistryError, match="push model: 127.0.0.1:9"):
        library.copy(name, ModelName.parse("127.0.0.1:9/a/b"))
        push(library, ModelName.parse("127.0.0.1:9/a/b"), insecure=True)


def test_a_login_is_sent_to_no_other_host(registry: FakeRegistry) -> None:
    name, digest = offer(registry), digest_of(WEIGHTS)
    registry.token = "secret"
    with serving() as other, Registry(f"http://{registry.host}/v2/{name.namespace}/{name.model}/") as client:
        other.blobs["me/model", digest] = WEIGHTS
        with client.ask("GET", "manifests/latest") as response:
            assert response.status_code == 200
        with client.ask("GET", f"http://{other.host}/v2/me/model/blobs/{digest}") as response:
            assert response.read() == WEIGHTS
        assert ["Authorization" in headers for _, _, headers in other.asked] == [False]
    assert registry.asked[-1][2]["Authorization"] == "Bearer secret"


# The hub


def hub(registry: FakeRegistry, files: dict[str, bytes]) -> tuple[ModelName, str]:
    registry.repositories["me/moe-GGUF"] = files
    return ModelName.parse("hf.co/me/moe-GGUF:Q4_K_M"), f"http://{registry.host}"


def test_a_repository_is_pulled(library: Library, registry: FakeRegistry, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.gguf").read_bytes()
    files = {"moe-Q4_K_M.gguf": model, "moe-Q8_0.gguf": b"other", "README.md": b"hi", "params": b'{"top_k": 3}'}
    name, endpoint = hub(registry, files)
    registry.cuts = 2
    steps: list[Progress] = []
    manifest = pull_repository(library, name, steps.append, endpoint)
    assert library.model_path(name).read_bytes() == model
    assert [layer.kind for layer in manifest.layers] == ["model", "params"]
    assert library.json(manifest.config)["model_format"] == "gguf"
    assert [str(known) for known, _ in library.models()] == ["hf.co/me/moe-GGUF:Q4_K_M"]
    assert steps[-1].status == "success" and any(step.total == len(model) for step in steps)
    asked = len(registry.asked)
    pull_repository(library, name, endpoint=endpoint)
    assert len(registry.asked) == asked + 2  # what the repository holds, and the params


def test_parts_are_joined(library: Library, registry: FakeRegistry, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.gguf")
    parts = write_split(model, tmp_path, 3)
    files = {f"Q4_K_M/moe-Q4_K_M-0000{n}-of-00003.gguf": part.read_bytes() for n, part in enumerate(parts, start=1)}
    name, endpoint = hub(registry, files)
    pull_repository(library, name, endpoint=endpoint)
    with GGUFFile.open(library.model_path(name)) as joined, GGUFFile.open(model) as whole:
        assert len(joined.parts) == 1 and set(joined.tensors) == set(whole.tensors)
    assert not list((library.root / "incoming").iterdir())


def test_create_joins_parts(library: Library, tmp_path: Path) -> None:
    parts = write_split(write_model(tmp_path / "m.gguf"), tmp_path, 2)
    create(library, ModelName.parse("a"), parse_modelfile(f"FROM {parts[0].name}"), tmp_path)
    with GGUFFile.open(library.model_path(ModelName.parse("a"))) as joined:
        assert len(joined.parts) == 1
    assert not list(library.root.glob(".join-*"))


def test_what_is_no_repository_is_one_sentence(library: Library, registry: FakeRegistry) -> None:
    endpoint = f"http://{registry.host}"
    with pytest.raises(RegistryError, match="me/none does not exist, or asks for a login"):
        pull_repository(library, ModelName.parse("hf.co/me/none"), endpoint=endpoint)
    name, _ = hub(registry, {"README.md": b"hi"})
    with pytest.raises(RegistryError, match="me/moe-GGUF has no GGUF file$"):
        pull_repository(library, name, endpoint=endpoint)
    with pytest.raises(RegistryError, match="pull model manifest: me/x: "):
        pull_repository(library, ModelName.parse("hf.co/me/x"), endpoint="http://127.0.0.1:9")


FILES = [
    "x-Q4_K_M.gguf",
    "x-UD-Q4_K_XL.gguf",
    "x-Q4_K_XL.gguf",
    "x-Q8_0.gguf",
    "sub/x.Q5_K_M.gguf",
    "mmproj-Q4_K_M.gguf",
]


@pytest.mark.parametrize(
    ("tag", "path"),
    [
        ("latest", "x-Q4_K_M.gguf"),
        ("q4_k_m", "x-Q4_K_M.gguf"),
        ("Q4_K_XL", "x-Q4_K_XL.gguf"),
        ("UD-Q4_K_XL", "x-UD-Q4_K_XL.gguf"),
        ("Q5_K_M", "sub/x.Q5_K_M.gguf"),
        ("x-Q8_0.gguf", "x-Q8_0.gguf"),
        ("Q2_K", None),
        ("Q4_K", None),
    ],
)
def test_which_file_a_tag_means(tag: str, path: str | None) -> None:
    files = [RemoteFile(file, 1, "0" * 64) for file in FILES]
    if path:
        assert [file.path for file in choose(files, tag, "me/x")] == [path]
    else:
        with pytest.raises(RegistryError, match=f"has no GGUF file for the tag {tag}; it has sub/x.Q5_K_M, x-Q4_K_M"):
            choose(files, tag, "me/x")


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ([RemoteFile("x-00001-of-00002.gguf", 1, "0" * 64)], "has 1 of 2 parts"),
        ([RemoteFile("x.gguf", 1, "")], "has no SHA-256"),
    ],
)
def test_what_cannot_be_whole_or_verified_is_refused(files: list[Any], sentence: str) -> None:
    with pytest.raises(RegistryError, match=sentence):
        choose(files, "latest", "me/x")
