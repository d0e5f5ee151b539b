"""The model that comes with gmoe, as blobs that no store holds: its file lies in the package itself."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from gmoe.library.describe import describe

DEMO = Path(__file__).parents[1] / "demo" / "demo.gguf"


@dataclass(frozen=True)
class Bundle:
    """A model outside every store; digests are "sha256:" and 64 hex digits."""

    model: str  # digest of the GGUF file
    config: str
    blobs: Mapping[str, Path | bytes]
    modified: float  # seconds since 1970


def bundle() -> Bundle | None:
    """The bundled model; None in an installation without it, or where its file is damaged."""
    try:
        stat = DEMO.stat()
        return _bundle(DEMO, stat.st_size, stat.st_mtime)
    except (OSError, ValueError):
        return None


@lru_cache(4)
def _bundle(path: Path, size: int, modified: float) -> Bundle:
    config = json.dumps(describe(path), separators=(",", ":")).encode()
    with path.open("rb") as file:
        model = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    digest = f"sha256:{hashlib.sha256(config).hexdigest()}"
    return Bundle(model, digest, {model: path, digest: config}, modified)
