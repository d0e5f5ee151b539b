"""Library: named manifests over content-addressed blobs, in the folders that Ollama uses."""

import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from gmoe.library.demo import Bundle, bundle
from gmoe.library.home import expanded, home
from gmoe.library.name import InvalidName, ModelName

MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
OLLAMA_TYPE = "application/vnd.ollama.image."
GMOE_TYPE = "application/vnd.gmoe.image."
CHUNK = 1 << 20
BUNDLED = ModelName.parse("demo")
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
LOCK = ".lock"
_TEMPORARY = ".new-"
UPLOADED = ".uploaded"  # ends the name of a file beside a blob that somebody is about to name
PATIENCE = 86400  # seconds until nobody is
JOINING = ".join-"  # begins the name of a folder where parts are joined


class LibraryError(ValueError):
    """The library cannot do what was asked; its text is one sentence."""


class ModelNotFound(LibraryError):
    """No manifest has this name."""

    def __init__(self, name: ModelName):
        super().__init__(f"model '{name}' not found")


class Layer(NamedTuple):
    """One blob of a model; `digest` is "sha256:" and 64 hex digits, `size` counts bytes."""

    media_type: str
    digest: str
    size: int

    @property
    def kind(self) -> str:
        """The last word of the media type: model, template, params, ..."""
        return self.media_type.removeprefix(OLLAMA_TYPE).removeprefix(GMOE_TYPE)

    def to_json(self) -> dict[str, Any]:
        """As it stands in a manifest."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


@dataclass(frozen=True)
class Manifest:
    """What a name stands for: a config blob and layers; `digest` and `modified` are those of the file it came from."""

    config: Layer
    layers: tuple[Layer, ...]
    digest: str = ""  # 64 hex digits of the manifest itself; the model ID is the first 12
    modified: float = 0.0  # seconds since 1970
    source: bytes = b""  # what it was read from, so that a copy keeps its digest

    @property
    def size(self) -> int:
        """Bytes of all its blobs, as `list` shows them."""
        return self.config.size + sum(layer.size for layer in self.layers)

    @property
    def digests(self) -> set[str]:
        """Every blob it needs."""
        return {self.config.digest, *(layer.digest for layer in self.layers)}

    def of_kind(self, kind: str) -> list[Layer]:
        """Its layers of one kind, in order."""
        return [layer for layer in self.layers if layer.kind == kind]

    def to_bytes(self) -> bytes:
        """The manifest as it is stored and sent."""
        if self.source:
            return self.source
        layers = [layer.to_json() for layer in self.layers]
        body = {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": self.config.to_json(), "layers": layers}
        return json.dumps(body, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes, source: str, modified: float = 0.0) -> "Manifest":
        """Read a manifest; `source` names it in the `LibraryError` that anything else raises."""
        try:
            body = json.loads(data)
            config, *layers = (_layer(entry) for entry in [body["config"], *(body["layers"] or [])])
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
            raise LibraryError(f"{source} is not a manifest of a model") from None
        return cls(config, tuple(layers), hashlib.sha256(data).hexdigest(), modified, data)


class Library:
    """A store under `root`, and other stores (an Ollama's) read where they lie and never written; and the demo model.

    Any number of processes may use one store: files appear whole or not at all, blobs are only dropped while nobody
    is adding any.
    """

    def __init__(self, root: Path, also: Sequence[Path] = (), bundled: Bundle | None = None):
        self.root = Path(root)
        self._stores = (self.root, *map(Path, also))
        self._bundled = bundled

    @classmethod
    def default(cls) -> "Library":
        """The library in $GMOE_HOME/models, or ~/.gmoe/models, with the models of an Ollama of this machine."""
        return cls(home() / "models", ollama_stores(), bundle())

    def models(self) -> list[tuple[ModelName, Manifest]]:
        """All readable models, the one changed last first; a name in two stores is the one of the first store."""
        found: dict[str, tuple[ModelName, Manifest]] = {}
        for store in self._stores:
            for name, path in _manifests(store):
                with suppress(LibraryError, OSError):
                    found.setdefault(str(name).casefold(), (name, _read(path)))
        if self._bundled:
            found.setdefault(str(BUNDLED).casefold(), (BUNDLED, _manifest_of(self._bundled)))
        return sorted(found.values(), key=lambda model: (-model[1].modified, str(model[0])))

    def spelled(self, name: ModelName) -> ModelName:
        """The name in the letters that it has here; raises `ModelNotFound`."""
        path = self._place(name)
        if path is not None:
            return _named(path)
        if self._bundled and name.same(BUNDLED):
            return BUNDLED
        raise ModelNotFound(name)

    def resolve(self, name: ModelName) -> Manifest:
        """The manifest of a name, in whatever case its letters are; raises `ModelNotFound`."""
        path = self._place(name)
        if path is not None:
            return _read(path)
        if self._bundled and name.same(BUNDLED):
            return _manifest_of(self._bundled)
        raise ModelNotFound(name)

    def blob(self, digest: str) -> Path:
        """The file of a blob; raises `LibraryError` where no store has it."""
        for store in self._stores:
            path = store / "blobs" / blob_name(digest)
            if path.is_file():
                return path
        bundled = self._bundled.blobs.get(digest) if self._bundled else None
        if isinstance(bundled, Path):
            return bundled
        raise LibraryError(f"blob {digest} not found")

    def open(self, digest: str) -> BinaryIO:
        """The bytes of a blob; raises `LibraryError` where there is none."""
        bundled = self._bundled.blobs.get(digest) if self._bundled else None
        return io.BytesIO(bundled) if isinstance(bundled, bytes) else self.blob(digest).open("rb")

    def has_blob(self, digest: str) -> bool:
        """Whether a store has it; raises `LibraryError` for what is no digest."""
        return any((store / "blobs" / blob_name(digest)).is_file() for store in self._stores)

    def text(self, layer: Layer) -> str:
        """A blob as text."""
        with self.open(layer.digest) as blob:
            return blob.read().decode("utf-8", "replace")

    def json(self, layer: Layer) -> Any:
        """A blob as JSON; raises `LibraryError` if it is none."""
        with self.open(layer.digest) as blob:
            text = blob.read()
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise LibraryError(f"blob {layer.digest} is not JSON") from None

    def model_path(self, name: ModelName) -> Path:
        """The GGUF file of a model, to be mapped where it lies."""
        layers = self.resolve(name).of_kind("model")
        if not layers:
            raise LibraryError(f"model '{name}' has no GGUF layer")
        return self.blob(layers[0].digest)

    @contextmanager
    def adding(self) -> Iterator[None]:
        """While held, no blob is dropped: put blobs and then name them within it."""
        with self._lock(fcntl.LOCK_SH):
            yield

    @contextmanager
    def reading(self) -> Iterator[None]:
        """The same for who adds nothing, in a library that may not be written."""
        with ExitStack() as stack:
            with suppress(OSError):  # nobody has ever added here
                fcntl.flock(stack.enter_context(open(self.root / LOCK)), fcntl.LOCK_SH)
            yield

    def put_blob(self, source: BinaryIO | bytes, media_type: str, digest: str | None = None) -> Layer:
        """Store bytes; with `digest`, they must have it (`LibraryError`)."""
        source = io.BytesIO(source) if isinstance(source, bytes) else source
        with self.adding(), _new_file(self._folder("blobs")) as (file, temporary):
            sha, size = hashlib.sha256(), 0
            while chunk := source.read(CHUNK):
                sha.update(chunk)
                size += file.write(chunk)
            got = f"sha256:{sha.hexdigest()}"
            if digest is not None and blob_name(digest) != blob_name(got):
                raise LibraryError(f"digest mismatch: expected {digest}, got {got}")
            if not self.has_blob(got):
                _publish(file, temporary, self.root / "blobs" / blob_name(got))
        return Layer(media_type, got, size)

    def upload(self, source: BinaryIO, media_type: str, digest: str) -> Layer:
        """Store bytes that somebody is about to name: meanwhile they are not dropped."""
        with self.adding():
            layer = self.put_blob(source, media_type, digest)
            (self.root / "blobs" / f"{blob_name(digest)}{UPLOADED}").touch()
        return layer

    def adopt(self, path: Path, media_type: str) -> Layer:
        """Take a file of this file system into the store; it is at `path` no longer."""
        with self.adding(), path.open("rb+") as file:
            digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
            size = file.seek(0, os.SEEK_END)
            _publish(file, path, self._folder("blobs") / blob_name(digest))
        return Layer(media_type, digest, size)

    def write(self, name: ModelName, manifest: Manifest) -> None:
        """Let a name stand for a manifest, whose blobs must be here; keeps the letters of a name that is there."""
        with self.adding():
            for digest in manifest.digests:
                self._keep(digest)
            path = _find(self.root, name) or self.root / "manifests" / name.path
            path.parent.mkdir(parents=True, exist_ok=True)
            with _new_file(self._folder("blobs")) as (file, temporary):
                file.write(manifest.to_bytes())
                _publish(file, temporary, path)

    def copy(self, source: ModelName, target: ModelName) -> None:
        """Give a model another name; raises `ModelNotFound`."""
        with self.adding():
            self.write(target, self.resolve(source))

    def remove(self, name: ModelName) -> None:
        """Forget a name, then drop the blobs that no manifest needs any more; raises `ModelNotFound`."""
        path = _find(self.root, name)
        if path is None:
            bundled = self._bundled and self.resolve(name) == _manifest_of(self._bundled)
            where = "comes with gmoe" if bundled else "belongs to a store that is only read"
            self.resolve(name)
            raise LibraryError(f"model '{name}' {where}")
        path.unlink(missing_ok=True)
        self.prune()

    def _place(self, name: ModelName) -> Path | None:
        """Its manifest in the first store that has one."""
        return next((path for store in self._stores if (path := _find(store, name)) is not None), None)

    def _keep(self, digest: str) -> None:
        """A blob that is about to be named is in a store, for the bundled model may be another one tomorrow."""
        if self._bundled and digest in self._bundled.blobs and not self.has_blob(digest):
            with self.open(digest) as blob:
                self.put_blob(blob, "")
        else:
            self.blob(digest)

    def prune(self) -> list[str]:
        """Drop blobs that no manifest needs and unfinished files; does nothing while somebody is adding.

        Nor does it where a manifest cannot be read. Partial downloads stay, so that they can be resumed, and, for a
        day, uploads. Returns the names of the dropped files.
        """
        dropped = []
        with suppress(OSError, LibraryError), self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB):
            manifests = (self.root / "manifests").glob("*/*/*/*")
            needed = {blob_name(digest) for path in manifests for digest in _read(path).digests}
            for path in (self.root / "blobs").glob(f"*{UPLOADED}"):
                if path.stem not in needed and time.time() - path.stat().st_mtime < PATIENCE:
                    needed |= {path.stem, path.name}
            for path in (self.root / "blobs").glob("*"):
                if path.name.removesuffix(".trace") not in needed and not path.name.endswith("-partial"):
                    path.unlink(missing_ok=True)
                    dropped.append(path.name)
            for path in self.root.glob(f"{JOINING}*"):
                shutil.rmtree(path, ignore_errors=True)
            for folder in sorted((self.root / "manifests").glob("**/*/"), reverse=True):
                with suppress(OSError):
                    folder.rmdir()
        return dropped

    @contextmanager
    def _lock(self, how: int) -> Iterator[None]:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            file = open(self.root / LOCK, "a")
        except OSError as error:
            raise LibraryError(f"the library {self.root} cannot be written: {error.strerror}") from None
        with file:
            fcntl.flock(file, how)
            yield

    def _folder(self, name: str) -> Path:
        folder = self.root / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def ollama_stores() -> list[Path]:
    """Where an Ollama of this machine keeps its models: $OLLAMA_MODELS, else its default folders that are there."""
    named = os.environ.get("OLLAMA_MODELS")
    folders = [Path(named)] if named else [expanded("~/.ollama/models"), Path("/usr/share/ollama/.ollama/models")]
    return [folder for folder in folders if os.access(folder / "manifests", os.R_OK | os.X_OK)]


def blob_name(digest: str) -> str:
    """The file name of a blob; `digest` may be written with ":" or "-", and cannot name any other file."""
    match = _DIGEST.fullmatch(digest)
    if not match:
        raise LibraryError(f"{digest!r} is not a digest such as sha256:<64 hex digits>")
    return f"sha256-{match[1]}"


def _layer(entry: dict[str, Any]) -> Layer:
    blob_name(entry["digest"])
    return Layer(str(entry["mediaType"]), entry["digest"].replace("-", ":"), int(entry["size"]))


def _manifest_of(bundled: Bundle) -> Manifest:
    sizes = {
        digest: len(blob) if isinstance(blob, bytes) else blob.stat().st_size for digest, blob in bundled.blobs.items()
    }
    model = Layer(OLLAMA_TYPE + "model", bundled.model, sizes[bundled.model])
    manifest = Manifest(Layer(CONFIG_TYPE, bundled.config, sizes[bundled.config]), (model,))
    return Manifest.from_bytes(manifest.to_bytes(), str(BUNDLED), bundled.modified)


def _read(path: Path) -> Manifest:
    return Manifest.from_bytes(path.read_bytes(), str(path), path.stat().st_mtime)


def _manifests(store: Path) -> Iterator[tuple[ModelName, Path]]:
    for path in (store / "manifests").glob("*/*/*/*"):
        with suppress(InvalidName):
            yield _named(path), path


def _named(path: Path) -> ModelName:
    """Of whom a manifest is."""
    return ModelName.parse("{}/{}/{}:{}".format(*path.parts[-4:]))


def _find(store: Path, name: ModelName) -> Path | None:
    path = store / "manifests" / name.path
    if path.is_file():
        return path
    return next((path for other, path in _manifests(store) if name.same(other)), None)


@contextmanager
def _new_file(folder: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A file that is gone afterwards unless it was published."""
    handle, path = tempfile.mkstemp(dir=folder, prefix=_TEMPORARY)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file, Path(path)
    finally:
        Path(path).unlink(missing_ok=True)


def _publish(file: BinaryIO, temporary: Path, path: Path) -> None:
    """Make a file appear under its name, whole and on the disk."""
    file.flush()
    os.fsync(file.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
