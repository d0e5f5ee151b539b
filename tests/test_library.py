"""The library: whole files or none, shared blobs counted, another store read in place, models built."""

import hashlib
import io
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import gguf
import numpy as np
import pytest

from gmoe.gguf.file import GGUFError, GGUFFile
from gmoe.gguf.rewrite import identity, rewrite
from gmoe.library import demo
from gmoe.library.create import create, modelfile_of
from gmoe.library.describe import describe, human_number
from gmoe.library.find import Package, find
from gmoe.library.manifest import CONFIG_TYPE, GMOE_TYPE, OLLAMA_TYPE, Library, LibraryError, Manifest, ModelNotFound
from gmoe.library.modelfile import parse_modelfile
from gmoe.library.name import ModelName
from gmoe.options import RuntimeOptions
from gmoe.server.catalog import Catalog
from gmoe.server.models import facts
from tests.factory import write_model

A, B = ModelName.parse("a"), ModelName.parse("B:Two")


def write_gguf(path: Path, value: float = 1.0) -> Path:
    """A file with one tensor of 2000 weights."""
    writer = gguf.GGUFWriter(str(path), "qwen3moe")
    writer.add_file_type(15)
    writer.add_tensor("token_embd.weight", np.full((50, 40), value, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def blobs(library: Library) -> set[str]:
    return {path.name for path in (library.root / "blobs").iterdir()}


def named(library: Library, name: ModelName, *contents: bytes) -> Manifest:
    """A model whose layers hold these bytes."""
    config = library.put_blob(b"{}", CONFIG_TYPE)
    manifest = Manifest(config, tuple(library.put_blob(data, OLLAMA_TYPE + "model") for data in contents))
    library.write(name, manifest)
    return library.resolve(name)


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(tmp_path / "models")


def test_the_folders_are_those_of_ollama(library: Library) -> None:
    manifest = named(library, A, b"weights")
    path = library.root / "manifests/registry.ollama.ai/library/a/latest"
    body = json.loads(path.read_bytes())
    digest = hashlib.sha256(b"weights").hexdigest()
    assert body["layers"] == [{"mediaType": OLLAMA_TYPE + "model", "digest": f"sha256:{digest}", "size": 7}]
    assert (library.root / "blobs" / f"sha256-{digest}").read_bytes() == b"weights"
    assert manifest.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert manifest.size == 9
    assert library.model_path(A) == library.blob(f"sha256-{digest}")


def test_a_wrong_digest_leaves_nothing(library: Library) -> None:
    with pytest.raises(LibraryError, match="digest mismatch"):
        library.put_blob(io.BytesIO(b"x"), "t", "sha256:" + "0" * 64)
    assert blobs(library) == set()


@pytest.mark.parametrize("digest", ["", "sha256:..", "sha256-../../x", "md5:" + "0" * 32, "sha256:" + "0" * 63 + "\n"])
def test_no_digest_leads_elsewhere(library: Library, digest: str) -> None:
    with pytest.raises(LibraryError, match="is not a digest"):
        library.blob(digest)


def test_shared_blobs_stay_until_the_last_name_goes(library: Library) -> None:
    named(library, A, b"shared", b"only a")
    named(library, B, b"shared")
    library.remove(A)
    assert len(blobs(library)) == 2
    with pytest.raises(ModelNotFound, match="model 'a:latest' not found"):
        library.resolve(A)
    library.remove(B)
    assert blobs(library) == set()
    assert list((library.root / "manifests").iterdir()) == []


def test_nothing_is_dropped_while_somebody_adds(library: Library) -> None:
    with library.adding():
        layer = library.put_blob(b"not named yet", "t")
        assert library.prune() == []
        assert library.has_blob(layer.digest)
    assert library.prune() == [f"sha256-{layer.digest[7:]}"]


def test_an_upload_waits_a_day_for_its_name(library: Library) -> None:
    digests = {data: f"sha256:{hashlib.sha256(data).hexdigest()}" for data in (b"a", b"b", b"c")}
    layers = [library.upload(io.BytesIO(data), OLLAMA_TYPE + "model", digest) for data, digest in digests.items()]
    named(library, B, b"other")
    library.remove(B)
    files = [f"sha256-{layer.digest[7:]}" for layer in layers]
    assert blobs(library) == {*files, *(f"{file}.uploaded" for file in files)}
    library.write(A, Manifest(library.put_blob(b"{}", CONFIG_TYPE), (layers[0],)))
    os.utime(library.root / "blobs" / f"{files[1]}.uploaded", (1, 1))
    assert {*library.prune()} == {f"{files[0]}.uploaded", files[1], f"{files[1]}.uploaded"}
    library.remove(A)
    assert blobs(library) == {files[2], f"{files[2]}.uploaded"}


def test_nothing_is_dropped_where_a_manifest_is_damaged(library: Library) -> None:
    named(library, A, b"weights")
    (library.root / "manifests" / A.path).write_text("{")
    assert library.prune() == []
    assert len(blobs(library)) == 2
    assert library.models() == []
    with pytest.raises(LibraryError, match="is not a manifest"):
        library.resolve(A)


def test_partial_downloads_survive_pruning_and_unfinished_files_do_not(library: Library) -> None:
    named(library, A, b"weights")
    partial = library.root / "blobs" / f"sha256-{'0' * 64}-partial"
    partial.write_bytes(b"half")
    (library.root / "blobs" / ".new-x").write_bytes(b"left by a crash")
    assert library.prune() == [".new-x"]
    assert partial.exists()


def test_names_match_whatever_their_case(library: Library) -> None:
    named(library, B, b"x")
    assert library.resolve(ModelName.parse("b:two")).layers[0].size == 1
    named(library, ModelName.parse("b:two"), b"yy")
    assert [(str(name), manifest.layers[0].size) for name, manifest in library.models()] == [("B:Two", 2)]


def test_a_name_needs_its_blobs(library: Library) -> None:
    manifest = named(library, A, b"x")
    missing = manifest.layers[0]._replace(digest="sha256:" + "0" * 64)
    with pytest.raises(LibraryError, match="not found"):
        library.write(B, Manifest(manifest.config, (missing,)))
    with pytest.raises(ModelNotFound):
        library.resolve(B)


def test_copy_keeps_the_digest(library: Library) -> None:
    digest = named(library, A, b"x").digest
    library.copy(A, B)
    assert library.resolve(B).digest == digest
    with pytest.raises(ModelNotFound):
        library.copy(ModelName.parse("none"), A)


def test_another_store_is_read_in_place_and_never_written(tmp_path: Path) -> None:
    theirs = Library(tmp_path / "ollama")
    named(theirs, A, b"weights")
    before = {path: path.stat().st_mtime_ns for path in theirs.root.rglob("*")}
    mine = Library(tmp_path / "mine", also=[theirs.root])
    assert [name for name, _ in mine.models()] == [A]
    assert mine.model_path(A).is_relative_to(theirs.root)
    mine.copy(A, B)
    assert mine.model_path(B).is_relative_to(theirs.root)
    with pytest.raises(LibraryError, match="only read"):
        mine.remove(A)
    mine.remove(B)
    assert {path: path.stat().st_mtime_ns for path in theirs.root.rglob("*")} == before


@pytest.fixture
def user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home without Ollama and a gmoe without its demo model."""
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("GMOE_HOME", str(tmp_path / "gmoe"))
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)
    monkeypatch.setattr(demo, "DEMO", tmp_path / "demo.gguf")
    return tmp_path


def test_the_default_place(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Library.default().root == user / "gmoe/models"
    monkeypatch.delenv("GMOE_HOME")
    assert Library.default().root == user / "user/.gmoe/models"
    assert Library.default().models() == []


@pytest.mark.parametrize("named", [False, True])
def test_ollamas_models_are_in_the_default_library(user: Path, monkeypatch: pytest.MonkeyPatch, named: bool) -> None:
    folder = user / ("elsewhere" if named else "user/.ollama/models")
    if named:
        monkeypatch.setenv("OLLAMA_MODELS", str(folder))
    named_model = create(Library(folder), A, parse_modelfile(f"FROM {write_gguf(user / 'm.gguf')}\nSYSTEM hm"), user)
    library = Library.default()
    assert [(name, manifest.digest) for name, manifest in library.models()] == [(A, named_model.digest)]
    package = find("a")
    assert package.path.is_relative_to(folder) and package.modelfile.last("system") == "hm"
    assert not (user / "gmoe").exists()


def test_the_demo_model_is_in_every_library(user: Path) -> None:
    assert Library.default().models() == []
    with pytest.raises(ModelNotFound):
        find("demo")
    write_gguf(demo.DEMO)
    library = Library.default()
    ((name, manifest),) = library.models()
    assert (str(name), manifest.size) == ("demo:latest", demo.DEMO.stat().st_size + manifest.config.size)
    assert library.json(manifest.config)["model_family"] == "qwen3moe"
    assert find("demo").path == find("Demo:latest").path == demo.DEMO
    assert str(modelfile_of(library, manifest)) == f"FROM {demo.DEMO}\n"
    with pytest.raises(LibraryError, match="model 'demo:latest' comes with gmoe"):
        library.remove(name)
    assert not (user / "gmoe/models/blobs").exists()


def test_what_is_made_of_the_demo_model_outlives_it(user: Path) -> None:
    write_gguf(demo.DEMO)
    library = Library.default()
    library.copy(ModelName.parse("demo"), A)
    create(library, B, parse_modelfile("FROM demo\nSYSTEM be kind"), None)
    content = demo.DEMO.read_bytes()
    demo.DEMO.unlink()
    assert [str(name) for name, _ in Library.default().models()] == ["B:Two", "a:latest"]
    assert find("a").path.read_bytes() == find("b:two").path.read_bytes() == content
    write_gguf(demo.DEMO)
    create(library, ModelName.parse("demo"), parse_modelfile("FROM a\nSYSTEM mine"), None)
    assert find("demo").modelfile.last("system") == "mine"
    library.remove(ModelName.parse("demo"))
    assert find("demo").modelfile.last("system") is None


def test_a_damaged_demo_model_is_no_model(user: Path) -> None:
    demo.DEMO.write_bytes(b"GGUF")
    assert Library.default().models() == []


def test_a_package_s_options_and_sampling(user: Path) -> None:
    (user / "m.trace").write_bytes(b"trace")
    text = f"FROM {write_gguf(user / 'm.gguf')}\n# gmoe: host_memory 6GiB\n# gmoe: trace m.trace\n# gmoe: threads 3\n"
    text += "PARAMETER num_ctx 512\nPARAMETER num_thread 2\nPARAMETER num_predict -1\nPARAMETER seed 7\n"
    text += "PARAMETER stop a\nPARAMETER stop b\nPARAMETER temperature 0.3\nPARAMETER num_gpu 1\n"
    create(Library.default(), A, parse_modelfile(text), user)
    package = find("a")
    assert package.sampling == {"seed": 7, "stop": ("a", "b"), "temperature": 0.3}
    options = package.options(RuntimeOptions(context=100, kv_type="f32"))
    assert (options.host_memory, options.threads, options.context, options.kv_type) == ("6GiB", 3, 100, "f32")
    assert options.trace is not None and options.trace.read_bytes() == b"trace"
    assert package.options().context == 512
    lossy = Package(package.path, parse_modelfile("FROM x\n# gmoe: quality fast"))
    exact = lossy.options(RuntimeOptions(max_kld=0))
    assert (exact.quality, exact.max_kld) == ("exact", 0)
    measured = Package(package.path, parse_modelfile("FROM x\n# gmoe: max_kld 0.5")).options(
        RuntimeOptions(quality="high")
    )
    assert (measured.quality, measured.max_kld) == ("high", None)


def test_what_is_insisted_upon_counts_though_it_is_the_default() -> None:
    package = Package(Path("x"), parse_modelfile("FROM x\n# gmoe: max_kld 0.5\n# gmoe: kv_type q8_0\n# gmoe: seed 3"))
    assert package.options(RuntimeOptions()).max_kld == 0.5
    options = package.options(RuntimeOptions().insisting(["quality", "kv_type"]))
    assert (options.quality, options.max_kld, options.kv_type, options.seed) == ("exact", None, "f16", 3)
    assert RuntimeOptions().insisting(["quality"]) == RuntimeOptions()


def test_an_adapter_is_refused(user: Path) -> None:
    library = Library.default()
    manifest = create(library, A, parse_modelfile(f"FROM {write_gguf(user / 'm.gguf')}"), user)
    adapter = library.put_blob(b"lora", OLLAMA_TYPE + "adapter")
    library.write(B, Manifest(manifest.config, (*manifest.layers, adapter)))
    with pytest.raises(LibraryError, match="has an adapter, which gmoe cannot apply"):
        find("b:two")


@pytest.mark.parametrize(
    ("kind", "blob", "sentence"),
    [
        ("params", b"[1]", "is no JSON object"),
        ("params", b"[" * 100_000, "is not JSON"),
        ("messages", b"null", "is no JSON list"),
        ("messages", b'[{"role": "user"}, "x"]', "has a message without a role and a text"),
        ("messages", b'[{"role": ["user"], "content": "x"}]', "has a message without a role and a text"),
        ("messages", b'[{"role": "user", "content": 1}]', "has a message without a role and a text"),
        ("settings", b'[["threads", 1]]', "settings are not pairs of texts"),
        ("settings", b'["threads"]', "settings are not pairs of texts"),
        ("config", b"3", "is no JSON object"),
    ],
)
def test_a_model_that_nobody_could_have_made_is_one_sentence(user: Path, kind: str, blob: bytes, sentence: str) -> None:
    library = Library.default()
    manifest = create(library, A, parse_modelfile(f"FROM {write_gguf(user / 'm.gguf')}"), user)
    media_type = (GMOE_TYPE if kind == "settings" else OLLAMA_TYPE) + kind
    config = library.put_blob(blob, CONFIG_TYPE) if kind == "config" else manifest.config
    layers = manifest.layers if kind == "config" else (*manifest.layers, library.put_blob(blob, media_type))
    library.write(B, Manifest(config, layers))
    with pytest.raises(LibraryError, match=sentence):
        find("b:two")
    assert [entry.name for entry in Catalog(library).entries()] == ["a:latest"]
    if kind in ("params", "config"):
        with pytest.raises(LibraryError, match=sentence):
            create(library, A, parse_modelfile("FROM b:two\nPARAMETER top_k 1"), user)


def test_a_manifest_that_is_nested_without_end_is_none() -> None:
    with pytest.raises(LibraryError, match="x is not a manifest"):
        Manifest.from_bytes(b'{"config":' + b"[" * 100_000, "x")


def churn(root: Path, seed: int) -> None:
    library, rng = Library(root), np.random.default_rng(seed)
    name = ModelName.parse(f"m{seed}")
    for _ in range(30):
        with library.adding():
            named(library, name, rng.bytes(2000), b"shared by all")
        if rng.random() < 0.5:
            library.remove(name)
    with library.adding():
        named(library, name, b"last", b"shared by all")


def test_two_processes_at_once_corrupt_nothing(library: Library) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=churn, args=(library.root, seed)) for seed in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    assert len(library.models()) == 2
    for _, manifest in library.models():
        for digest in manifest.digests:
            assert f"sha256:{hashlib.sha256(library.blob(digest).read_bytes()).hexdigest()}" == digest
    library.prune()
    assert len(blobs(library)) == 3


def test_killed_at_any_moment_the_library_opens_and_nothing_named_is_missing(library: Library) -> None:
    context, rng = multiprocessing.get_context("fork"), np.random.default_rng(0)
    for _ in range(12):
        worker = context.Process(target=churn, args=(library.root, 7))
        worker.start()
        time.sleep(float(rng.uniform(0.002, 0.06)))
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        for _, manifest in library.models():
            for digest in manifest.digests:
                assert f"sha256:{hashlib.sha256(library.blob(digest).read_bytes()).hexdigest()}" == digest
    library.prune()
    assert blobs(library) == {f"sha256-{d[7:]}" for _, manifest in library.models() for d in manifest.digests}


def test_create_from_a_file(library: Library, tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "m.gguf")
    (tmp_path / "m.trace").write_bytes(b"trace")
    text = (
        'FROM ./m.gguf\nSYSTEM "be\nkind"\nTEMPLATE {{ .Prompt }}\nPARAMETER stop x\nPARAMETER top_k 3\nLICENSE MIT\n'
    )
    text += "LICENSE GPL\nMESSAGE user hi\nREQUIRES 0.14.0\n# gmoe: host_memory 6GiB\n# gmoe: trace m.trace\n"
    steps: list[str] = []
    manifest = create(library, A, parse_modelfile(text), tmp_path, steps.append)
    assert steps[0] == "parsing GGUF" and steps[-2:] == ["writing manifest", "success"]
    assert library.model_path(A).read_bytes() == source.read_bytes()
    config = library.json(manifest.config)
    assert (config["model_family"], config["model_type"], config["file_type"]) == ("qwen3moe", "2K", "Q4_K_M")
    assert config["requires"] == "0.14.0"
    kinds = ["model", "template", "system", "license", "license", "params", "messages", "settings", "trace"]
    assert [layer.kind for layer in manifest.layers] == kinds
    assert library.json(manifest.of_kind("params")[0]) == {"stop": ["x"], "top_k": 3}


def test_a_model_gives_its_modelfile_back(library: Library, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    text = 'FROM m.gguf\nSYSTEM "be\nkind"\nPARAMETER stop x\nPARAMETER stop y\nPARAMETER use_mmap false\n'
    text += "MESSAGE user hi\nRENDERER qwen3\n# gmoe: policy.t1 0.6\n"
    first = create(library, A, parse_modelfile(text), tmp_path)
    again = create(library, B, parse_modelfile(str(modelfile_of(library, first))), tmp_path)
    assert again.digests == first.digests


def test_create_from_a_name_replaces_texts_and_merges_parameters(library: Library, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    base = create(library, A, parse_modelfile("FROM m.gguf\nSYSTEM old\nPARAMETER top_k 1\nPARAMETER seed 1"), tmp_path)
    model = create(library, B, parse_modelfile("FROM a\nSYSTEM new\nPARAMETER top_k 2"), None)
    assert model.of_kind("model") == base.of_kind("model")
    assert [library.text(layer) for layer in model.of_kind("system")] == ["new"]
    assert library.json(model.of_kind("params")[0]) == {"top_k": 2, "seed": 1}


def test_create_from_a_blob(library: Library, tmp_path: Path) -> None:
    layer = library.put_blob(write_gguf(tmp_path / "m.gguf").read_bytes(), "t")
    manifest = create(library, A, parse_modelfile(f"FROM {layer.digest}"), None)
    assert manifest.layers[0].digest == layer.digest


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("FROM nothing", "model 'nothing:latest' not found"),
        ("FROM ./nothing.gguf", "is no name of a model"),
        ("FROM nothing.gguf", "FROM nothing.gguf: there is no such file"),
        ("FROM .", "is a folder"),
        ("FROM m.gguf\nFROM m.gguf", "more than one FROM"),
        ("FROM m.gguf\nADAPTER lora.gguf", "ADAPTER is not supported"),
        ("FROM m.gguf\n# gmoe: twin none.gguf", "twin none.gguf: there is no such file"),
        ("FROM bad.gguf", "is not a valid GGUF file"),
    ],
)
def test_create_refuses_with_a_sentence_and_leaves_nothing(
    library: Library, tmp_path: Path, text: str, sentence: str
) -> None:
    write_gguf(tmp_path / "m.gguf")
    (tmp_path / "bad.gguf").write_bytes(b"no model")
    with pytest.raises((LibraryError, GGUFError)) as error:
        create(library, A, parse_modelfile(text), tmp_path)
    assert sentence in str(error.value)
    assert library.models() == []
    library.prune()
    assert not (library.root / "blobs").exists() or blobs(library) == set()


def test_without_a_folder_no_file_is_opened(library: Library, tmp_path: Path) -> None:
    with pytest.raises(LibraryError, match="no name of a model"):
        create(library, A, parse_modelfile(f"FROM {write_gguf(tmp_path / 'm.gguf')}"), None)


def test_counts_of_parameters() -> None:
    numbers = [999, 12_000, 270_000_000, 1_500_000, 30_500_000_000, 7_000_000_000]
    assert [human_number(n) for n in numbers] == ["999", "12K", "270M", "1.50M", "30.5B", "7B"]


def test_options_name_the_packed_files_and_no_others(library: Library, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    (tmp_path / "t").write_bytes(b"trace")
    text = "FROM m.gguf\n# gmoe: trace t\n# gmoe: threads 2\n"
    manifest = create(library, A, parse_modelfile(text), tmp_path)
    options = modelfile_of(library, manifest).options
    assert options == {"threads": 2, "trace": str(library.blob(manifest.of_kind("trace")[0].digest))}
    forged = library.put_blob(b'[["twin","/etc/passwd"],["threads","3"]]', GMOE_TYPE + "settings")
    library.write(B, Manifest(manifest.config, (forged,)))
    assert modelfile_of(library, library.resolve(B)).options == {"threads": 3}


def test_a_model_that_says_odd_things_of_itself_is_described(tmp_path: Path) -> None:
    model, odd = write_model(tmp_path / "m.gguf", "qwen3moe"), tmp_path / "odd.gguf"
    said = {"general.file_type": [1, 2], "general.architecture": [3, 4], "qwen3moe.context_length": [float("nan")] * 2}
    with GGUFFile.open(model) as file:
        rewrite(file, odd, identity, said)
    assert (describe(odd)["file_type"], describe(odd)["model_family"]) == ("F32", "")
    details = facts(str(odd), "")["details"]
    assert (details["quantization_level"], details["family"]) == ("unknown", "")
