"""A GGUF file into the library as one blob, also where it lies in parts."""

import tempfile
from pathlib import Path

from gmoe.gguf.file import GGUFFile
from gmoe.gguf.rewrite import identity, rewrite
from gmoe.library.manifest import JOINING, OLLAMA_TYPE, Layer, Library

MEDIA_TYPE = OLLAMA_TYPE + "model"


def put_model(library: Library, path: Path) -> Layer:
    """The layer of a GGUF file; a split one is joined, tensor by tensor. Raises `GGUFError`."""
    with GGUFFile.open(path) as file:
        if len(file.parts) == 1:
            with path.open("rb") as source:
                return library.put_blob(source, MEDIA_TYPE)
        library.root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.root, prefix=JOINING) as folder:
            rewrite(file, Path(folder) / "model.gguf", identity)
            return library.adopt(Path(folder) / "model.gguf", MEDIA_TYPE)
