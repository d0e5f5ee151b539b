"""The model that a Modelfile is FROM, quantized on its way into the library."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gmoe.gguf.file import GGUFFile, TensorInfo
from gmoe.library.create import PACKED, path_in
from gmoe.library.describe import describe
from gmoe.library.find import Package, package_of
from gmoe.library.join import MEDIA_TYPE
from gmoe.library.manifest import JOINING, Library
from gmoe.library.modelfile import Command, Modelfile
from gmoe.library.name import ModelName
from gmoe.library.registry import Progress
from gmoe.passes.mixes import mix_named
from gmoe.passes.quantize import quantize

DIGEST = "0" * 19  # nobody knows it yet; clients of Ollama tell bars of progress apart by it


@contextmanager
def quantized(
    library: Library, modelfile: Modelfile, folder: Path | None, type_name: str, say: Callable[[Progress], None]
) -> Iterator[Modelfile]:
    """The Modelfile FROM a blob of this type, which is dropped unless a model is made of it within. Raises ValueError.

    Files are looked for in `folder`; without one FROM is a model or the digest of a blob. `say` hears how many bytes of
    the file's are through.
    """
    mix = mix_named(type_name)
    package = _source(library, modelfile.last("from") or "", folder)
    status = f"quantizing {describe(package.path)['file_type']} model to {mix}"
    with GGUFFile.open(package.path) as file:
        total, done = sum(info.nbytes for info in file.tensors.values()), 0

    def tell(info: TensorInfo, kind: str) -> None:
        nonlocal done
        say(Progress(status, DIGEST, total, done))
        done += info.nbytes

    with library.adding(), tempfile.TemporaryDirectory(dir=library.root, prefix=JOINING) as scratch:
        target = Path(scratch) / "model.gguf"
        quantize(package.path, target, mix, progress=tell)
        say(Progress(status, DIGEST, total, total))
        layer = library.adopt(target, MEDIA_TYPE)
        own = {command.name for command in modelfile.commands} - {"parameter"}
        kept = [command for command in package.modelfile.commands if command.name not in own]
        rest = [command for command in modelfile.commands if command.name != "from"]
        settings = [setting for setting in package.modelfile.settings if setting[0] not in PACKED]
        yield Modelfile((Command("from", layer.digest), *kept, *rest), (*settings, *modelfile.settings))


def _source(library: Library, source: str, folder: Path | None) -> Package:
    if folder and (path := path_in(folder, source)).is_file():
        return Package(path)
    if source.startswith("sha256:"):
        return Package(library.blob(source))
    return package_of(library, ModelName.parse(source))
