"""pull: a model from a registry into the library."""

import httpx

from gmoe.library.fetch import bring
from gmoe.library.huggingface import HOSTS, pull_repository
from gmoe.library.manifest import CHUNK, MANIFEST_TYPE, Library, Manifest
from gmoe.library.name import ModelName
from gmoe.library.registry import Progress, Registry, RegistryError, Report, login_of, reason, require

MAX_MANIFEST = 4 << 20


def pull(library: Library, name: ModelName, report: Report = lambda step: None, *, insecure: bool = False) -> Manifest:
    """Fetch a model and name it; what arrived before a cut is kept and not fetched again.

    A name on hf.co is a repository of Hugging Face. `insecure` speaks plain HTTP. Raises `LibraryError`; then the name
    still stands for what it stood for before.
    """
    if name.host in HOSTS:
        return pull_repository(library, name, report)
    with connect(library, name, insecure) as registry, library.adding():
        report(Progress("pulling manifest"))
        manifest = _manifest(registry, name)
        for layer in sorted({*manifest.layers, manifest.config}, key=lambda layer: -layer.size):
            bring(registry, f"blobs/{layer.digest}", library, layer, report)
        report(Progress("verifying sha256 digest"))
        report(Progress("writing manifest"))
        library.write(name, manifest)
    report(Progress("removing any unused layers"))
    library.prune()
    report(Progress("success"))
    return library.resolve(name)


def connect(library: Library, name: ModelName, insecure: bool) -> Registry:
    """The registry of a name, with the login that auth.json beside the library has for its host."""
    base = f"{'http' if insecure else 'https'}://{name.host}/v2/{name.namespace}/{name.model}/"
    return Registry(base, login=login_of(library.root.parent / "auth.json", name.host))


def _manifest(registry: Registry, name: ModelName) -> Manifest:
    url = f"manifests/{name.tag}"
    try:
        with registry.ask("GET", url, {"Accept": MANIFEST_TYPE}) as response:
            if response.status_code == 404:
                raise RegistryError(f"pull model manifest: file does not exist: {name}")
            require(response, 200)
            data = b""
            for chunk in response.iter_bytes(CHUNK):
                data += chunk
                if len(data) > MAX_MANIFEST:
                    raise RegistryError(f"the manifest of {name} is larger than {MAX_MANIFEST} bytes")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise RegistryError(f"pull model manifest: {name.host}: {reason(error)}") from None
    return Manifest.from_bytes(data, registry.base + url)
