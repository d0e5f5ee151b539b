"""Catalog: the models a server may serve: those of the library, and the files named on its command line."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gmoe.library.create import modelfile_of
from gmoe.library.find import Package
from gmoe.library.manifest import Library, LibraryError, Manifest, ModelNotFound
from gmoe.library.modelfile import Modelfile
from gmoe.library.name import InvalidName, ModelName
from gmoe.loadable import options_to_load
from gmoe.options import RuntimeOptions
from gmoe.server.ask import Refused


@dataclass(frozen=True)
class Entry:
    """One model: its full name, its GGUF file, and what its Modelfile says."""

    name: str
    path: Path
    digest: str  # changes when the model does
    size: int
    modified: float
    modelfile: Modelfile = Modelfile(())
    manifest: Manifest | None = None

    @property
    def identity(self) -> tuple[Path, str]:
        """Changes when the GGUF does; a blob of the library is named by what it is."""
        return self.path, "" if self.manifest else self.digest

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Ollama's parameters, by name."""
        return self.modelfile.parameters


@dataclass
class Catalog:
    """`files` are served under their stems; nothing else outside the library is ever opened."""

    library: Library
    files: Mapping[str, Path] = field(default_factory=dict)
    default: str | None = None  # the model for names that are not here

    @classmethod
    def of(cls, library: Library, paths: Iterable[Path], default: str | None = None) -> "Catalog":
        """Names for files; a name that two would have is a `ValueError`."""
        files: dict[str, Path] = {}
        for path in paths:
            name = str(ModelName.parse(_name_of(path)))
            if name in files:
                raise ValueError(f"{path} and {files[name]} would both be called {name}")
            files[name] = path
        return cls(library, files, default)

    def find(self, name: str) -> Entry:
        """The model of a name, or the default; `Refused` (404) where there is none."""
        try:
            return self._find(name)
        except Refused:
            if self.default is None:
                raise
            return self._find(self.default)

    def _find(self, name: str) -> Entry:
        try:
            parsed = ModelName.parse(name)
        except InvalidName:
            raise Refused(404, f"model '{name}' not found") from None
        known = self.file_called(parsed)
        if known is not None:
            return _of_file(known, self.files[known])
        try:
            return self._of_library(self.library.spelled(parsed), self.library.resolve(parsed))
        except ModelNotFound:
            raise Refused(404, f"model '{name}' not found") from None

    def file_called(self, name: ModelName) -> str | None:
        """The name of one of `files` as it is spelled there, whatever the case of the letters."""
        return next((known for known in self.files if known.casefold() == str(name).casefold()), None)

    def entries(self) -> list[Entry]:
        """All of them; the files first, then the library's, the one changed last first."""
        found = {name: _of_file(name, path) for name, path in self.files.items()}
        for parsed, manifest in self.library.models():
            if manifest.of_kind("model") and str(parsed) not in found:
                with suppress(LibraryError, OSError, Refused):
                    found[str(parsed)] = self._of_library(parsed, manifest)
        return list(found.values())

    def _of_library(self, name: ModelName, manifest: Manifest) -> Entry:
        layers = manifest.of_kind("model")
        if not layers:
            raise Refused(404, f"model '{name}' has no GGUF layer")
        if manifest.of_kind("adapter"):
            raise Refused(400, f"model '{name}' has an adapter, which gmoe cannot apply")
        modelfile = modelfile_of(self.library, manifest)
        path = self.library.blob(layers[0].digest)
        return Entry(str(name), path, manifest.digest, manifest.size, manifest.modified, modelfile, manifest)


def options_for(entry: Entry, base: RuntimeOptions) -> RuntimeOptions:
    """What to load a model with where a request wishes nothing: the server's flags, then what the Modelfile says."""
    return options_to_load(Package(entry.path, entry.modelfile), base)


def _of_file(name: str, path: Path) -> Entry:
    stat = path.stat()
    digest = f"{stat.st_ino:016x}{stat.st_size:016x}{stat.st_mtime_ns:032x}"
    return Entry(name, path, digest, stat.st_size, stat.st_mtime)


def _name_of(path: Path) -> str:
    """A file's stem, with what no name may hold made a hyphen."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "_.-") else "-" for c in path.stem)[:80].strip("-.") or "m"
