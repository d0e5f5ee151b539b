"""Pull from Hugging Face: `hf.co/user/repository:Q4_K_M` is the repository's GGUF of this quantization."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from gmoe.library.describe import describe
from gmoe.library.fetch import bring, fetch
from gmoe.library.join import MEDIA_TYPE, put_model
from gmoe.library.manifest import CONFIG_TYPE, OLLAMA_TYPE, Layer, Library, Manifest
from gmoe.library.name import TAG, ModelName
from gmoe.library.registry import Progress, Registry, RegistryError, Report, reason, require

HOSTS = ("hf.co", "huggingface.co")
PREFERRED = ("Q4_K_M", "Q4_K_S", "Q4_0", "IQ4_XS", "MXFP4", "Q5_K_M", "Q3_K_M", "Q6_K", "Q8_0", "F16", "BF16")
EXTRAS = ("template", "system", "params")  # files of these names are layers of the model, as Ollama takes them
MAX_EXTRA = 1 << 20
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


class RemoteFile(NamedTuple):
    """A file of a repository, `path` with its folders; `sha256` are 64 hex digits, or "" where it has none."""

    path: str
    size: int
    sha256: str


def pull_repository(
    library: Library, name: ModelName, report: Report = lambda step: None, endpoint: str | None = None
) -> Manifest:
    """Fetch and name a model; parts are joined. `endpoint` is another hub's address. Raises `LibraryError`."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils._headers import build_hf_headers

    report(Progress("pulling manifest"))
    repository = f"{name.namespace}/{name.model}"
    files = _files(repository, endpoint)
    chosen = choose(files, name.tag, repository)
    base = hf_hub_url(repository, "x", endpoint=endpoint).removesuffix("x")
    with Registry(base, build_hf_headers(library_name="gmoe")) as hub, library.adding():
        model = _model(library, hub, chosen, name, report)
        extras = [_extra(library, hub, file) for file in files if file.path in EXTRAS and file.size < MAX_EXTRA]
        config = describe(library.blob(model.digest))
        layers = (model, *extras)
        config["rootfs"] = {"type": "layers", "diff_ids": [layer.digest for layer in layers]}
        report(Progress("writing manifest"))
        put = library.put_blob(json.dumps(config, separators=(",", ":")).encode(), CONFIG_TYPE)
        library.write(name, Manifest(put, layers))
    report(Progress("removing any unused layers"))
    library.prune()
    report(Progress("success"))
    return library.resolve(name)


def choose(files: Sequence[RemoteFile], tag: str, repository: str) -> list[RemoteFile]:
    """The GGUF file, or all parts of it, that a tag means: a quantization, or the file's own name."""
    models: dict[str, list[RemoteFile]] = {}
    for file in files:
        if file.path.endswith(".gguf") and "mmproj" not in file.path.lower():
            part = _PART.fullmatch(file.path)
            models.setdefault(part[1] if part else file.path.removesuffix(".gguf"), []).append(file)
    if not models:
        raise RegistryError(f"{repository} has no GGUF file")
    wanted = PREFERRED if tag == TAG else (tag.removesuffix(".gguf"),)
    for word in wanted:
        pattern = re.compile(rf"(.*[-._/])?{re.escape(word)}([-./].*)?", re.IGNORECASE | re.DOTALL)
        found = sorted((stem for stem in models if pattern.fullmatch(stem)), key=lambda stem: (len(stem), stem))
        if found:
            return _whole(sorted(models[found[0]]), repository)
    if tag == TAG and len(models) == 1:
        return _whole(sorted(*models.values()), repository)
    raise RegistryError(f"{repository} has no GGUF file for the tag {tag}; it has {', '.join(sorted(models)[:20])}")


def _whole(parts: list[RemoteFile], repository: str) -> list[RemoteFile]:
    for number, file in enumerate(parts, start=1):
        part = _PART.fullmatch(file.path)
        if part and (int(part[2]), int(part[3])) != (number, len(parts)):
            raise RegistryError(f"{repository}: {part[1]} has {len(parts)} of {int(part[3])} parts")
        if not file.sha256:
            raise RegistryError(f"{repository}: {file.path} has no SHA-256 by which it could be verified")
    return parts


def _files(repository: str, endpoint: str | None) -> list[RemoteFile]:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    hub = HfApi(endpoint=endpoint)
    try:
        info = hub.model_info(repository, files_metadata=True, timeout=30)
    except RepositoryNotFoundError:
        raise RegistryError(f"pull model manifest: {repository} does not exist, or asks for a login") from None
    except Exception as error:  # the hub's client has another HTTP library in every version
        raise RegistryError(f"pull model manifest: {repository}: {hub.endpoint}: {reason(error)}") from None
    return [_remote(sibling) for sibling in info.siblings or []]


def _remote(sibling: Any) -> RemoteFile:
    large = sibling.lfs
    return RemoteFile(sibling.rfilename, sibling.size or 0, str(large.sha256) if large else "")


def _model(library: Library, hub: Registry, files: Sequence[RemoteFile], name: ModelName, report: Report) -> Layer:
    if len(files) == 1:
        layer = Layer(MEDIA_TYPE, f"sha256:{files[0].sha256}", files[0].size)
        bring(hub, files[0].path, library, layer, report)
        return layer
    folder = library.root / "incoming" / "-".join(name).replace(":", "-")
    for file in files:
        _bring_part(hub, file, folder, report)
    report(Progress("joining parts"))
    model = put_model(library, folder / Path(files[0].path).name)
    shutil.rmtree(folder, ignore_errors=True)
    return model


def _bring_part(hub: Registry, file: RemoteFile, folder: Path, report: Report) -> None:
    digest, target = f"sha256:{file.sha256}", folder / Path(file.path).name

    def count(completed: int) -> None:
        report(Progress(f"pulling {digest[7:19]}", digest, file.size, completed))

    if not target.exists():
        fetch(hub, file.path, target, digest, file.size, count, target.exists)
    count(file.size)


def _extra(library: Library, hub: Registry, file: RemoteFile) -> Layer:
    try:
        with hub.ask("GET", file.path) as response:
            require(response, 200)
            return library.put_blob(response.read(), OLLAMA_TYPE + file.path)
    except httpx.HTTPError as error:
        raise RegistryError(f"{hub.base}{file.path}: {reason(error)}") from None
