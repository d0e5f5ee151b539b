"""kill -9 at random moments of `create` and `pull`: `python -m tests.sweep_kill 50`.

After every kill the library must open, every model that was named must be whole (its blobs there, with their digests),
and the name that was being written must stand for the old model, the new one, or, where there was none, for nothing.
"""

import hashlib
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np

from gmoe.library import fetch
from gmoe.library.create import create
from gmoe.library.manifest import OLLAMA_TYPE, Layer, Library, Manifest, ModelNotFound
from gmoe.library.modelfile import parse_modelfile
from gmoe.library.name import ModelName
from gmoe.library.pull import pull
from tests.fake_registry import FakeRegistry, digest_of, serving

OPERATIONS = ("create", "create from parts", "pull")
KEPT, WORKED_ON = ModelName.parse("kept"), ModelName.parse("mine")


def write_parts(folder: Path, value: int, count: int) -> Path:
    """A GGUF of 4 MB in so many parts; the first, or the only one."""
    for n in range(count):
        name = f"m{value}-{n + 1:05}-of-{count:05}.gguf" if count > 1 else f"m{value}.gguf"
        writer = gguf.GGUFWriter(str(folder / name), "qwen3moe")
        if count > 1:
            for key, number in (("no", n), ("count", count)):
                writer.add_uint16(f"split.{key}", number)
            writer.add_int32("split.tensors.count", 4)
        for tensor in range(n, 4, count):
            writer.add_tensor(f"blk.{tensor}.ffn_norm.weight", np.full((512, 512), value + tensor, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return folder / (f"m{value}-00001-of-{count:05}.gguf" if count > 1 else f"m{value}.gguf")


def offer(registry: FakeRegistry, value: int) -> None:
    """A model of 4 MB under the registry's one name."""
    contents = [b'{"model_family":"x"}', np.random.default_rng(value).bytes(4 << 20), b"be kind"]
    kinds = ("config", OLLAMA_TYPE + "model", OLLAMA_TYPE + "system")
    layers = [Layer(kind, digest_of(content), len(content)) for kind, content in zip(kinds, contents, strict=True)]
    registry.blobs = {("me/m", layer.digest): content for layer, content in zip(layers, contents, strict=True)}
    registry.manifests["me/m", "latest"] = Manifest(layers[0], tuple(layers[1:])).to_bytes()


def work(operation: str, root: Path, folder: Path, registry: FakeRegistry, value: int) -> Callable[[], object]:
    """What is to be killed; each `value` is another content."""
    if operation == "pull":
        offer(registry, value)
        return lambda: pull(Library(root), ModelName.parse(f"{registry.host}/me/m"), insecure=True)
    path = write_parts(folder, value, 2 if operation == "create from parts" else 1)
    return lambda: create(Library(root), WORKED_ON, parse_modelfile(f"FROM {path.name}\nSYSTEM number {value}"), folder)


def whole(library: Library, manifest: Manifest) -> None:
    """Every blob of a model is there and has its digest."""
    for digest in manifest.digests:
        with library.open(digest) as blob:
            assert f"sha256:{hashlib.file_digest(blob, 'sha256').hexdigest()}" == digest


def stands_for(library: Library, name: ModelName) -> str:
    """The digest of what a name stands for; "" for nothing."""
    try:
        return library.resolve(name).digest
    except ModelNotFound:
        return ""


def sweep(operation: str, kills: int, seed: int = 0) -> Counter[str]:
    """Kill so many times; how often the name stood for the old model, the new one or none, and files were left over."""
    rng, seen = np.random.default_rng(seed), Counter[str]()
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as scratch, serving() as registry:
        folder, root = Path(scratch), Path(scratch) / "models"
        library = Library(root)
        name = ModelName.parse(f"{registry.host}/me/m") if operation == "pull" else WORKED_ON
        create(library, KEPT, parse_modelfile(f"FROM {write_parts(folder, 1000, 1).name}"), folder)
        kept = library.resolve(KEPT).digest
        began = time.perf_counter()
        work(operation, root, folder, registry, 2000)()
        seconds = time.perf_counter() - began
        library.remove(name)
        for n in range(kills):
            old = stands_for(library, name)
            worker = context.Process(target=work(operation, root, folder, registry, 3000 + n))
            worker.start()
            time.sleep(float(rng.uniform(0, 1.2 * seconds)))
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
            worker.join()
            fresh = Library(root)
            for _, manifest in fresh.models():
                whole(fresh, manifest)
            assert fresh.resolve(KEPT).digest == kept
            now = stands_for(fresh, name)
            assert now or not old, "a model that was named is missing"
            seen["old" if now == old else "new"] += 1
            seen["left over"] += len(leftovers(fresh)) > 0
            if rng.random() < 0.3:
                fresh.prune()
                whole(fresh, fresh.resolve(KEPT))
            if now and rng.random() < 0.2:
                fresh.remove(name)
        work(operation, root, folder, registry, 9000)()
        whole(library, library.resolve(name))
        library.prune()
        left = [path for path in leftovers(library) if not path.name.endswith("-partial")]
        assert not left, left
    return seen


def leftovers(library: Library) -> list[Path]:
    """Files and folders that no manifest needs."""
    named = {digest.replace(":", "-") for _, manifest in library.models() for digest in manifest.digests}
    blobs = [path for path in (library.root / "blobs").iterdir() if path.name not in named]
    return blobs + list(library.root.glob(".join-*"))


def main() -> None:
    """One line an operation."""
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    fetch.SEGMENT = 256 << 10
    print("| killed in | kills | name stood for old or nothing | for the new model | unfinished files were there |")
    print("|---|---|---|---|---|")
    for operation in OPERATIONS:
        seen = sweep(operation, kills, seed=kills)
        print(f"| {operation} | {kills} | {seen['old']} | {seen['new']} | {seen['left over']} |", flush=True)
    print("the library always opened, and nothing that was named was missing or damaged")


if __name__ == "__main__":
    main()
