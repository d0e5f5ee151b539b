"""create: a Modelfile becomes a named model of the library; and back."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from gmoe.library.describe import describe
from gmoe.library.home import expanded
from gmoe.library.join import put_model
from gmoe.library.manifest import (
    CONFIG_TYPE,
    GMOE_TYPE,
    OLLAMA_TYPE,
    Layer,
    Library,
    LibraryError,
    Manifest,
    ModelNotFound,
)
from gmoe.library.modelfile import PARAMETERS, ROLES, Command, Modelfile
from gmoe.library.name import InvalidName, ModelName

TEXTS = {"template": "template", "system": "system", "license": "license"}
PACKED = ("twin", "trace")  # settings that name a file, which becomes a layer of the package
Progress = Callable[[str], None]
Fits = Callable[[str, Path, Path], None]


def create(
    library: Library,
    name: ModelName,
    modelfile: Modelfile,
    folder: Path | None,
    progress: Progress = lambda status: None,
    fits: Fits = lambda kind, file, model: None,
) -> Manifest:
    """Build a model and name it. Raises `LibraryError`, `GGUFError`, and what `fits` raises.

    Paths are relative to `folder`; without one no file is opened, and FROM is a model or the digest of a blob. `fits`
    is asked of each file beside the model: "twin" or "trace", the file, the model's file.
    What the Modelfile leaves out comes from the model that FROM names, if it names one; parameters are merged.
    """
    for unsupported in ("adapter", "draft"):
        if modelfile.last(unsupported) is not None:
            raise LibraryError(f"{unsupported.upper()} is not supported: gmoe runs a single GGUF file")
    files = _files(modelfile, folder)

    def look(model: Path) -> None:
        for kind, file in files:
            fits(kind, file, model)

    with library.adding():
        config, inherited = _base(library, modelfile.values("from"), folder, progress, look)
        own = _layers(library, modelfile, inherited)
        own += [_put_file(library, file, GMOE_TYPE + kind) for kind, file in files]
        kinds = {layer.kind for layer in own}
        layers = [layer for layer in inherited if layer.kind not in kinds] + own
        for layer in own:
            progress(f"creating new layer {layer.digest}")
        for key in ("renderer", "parser", "requires"):
            if modelfile.last(key) is not None:
                config[key] = modelfile.last(key)
        config["rootfs"] = {"type": "layers", "diff_ids": [layer.digest for layer in layers]}
        manifest = Manifest(_put_json(library, config, CONFIG_TYPE), tuple(layers))
        progress("writing manifest")
        library.write(name, manifest)
    library.prune()
    progress("success")
    return library.resolve(name)


def modelfile_of(library: Library, manifest: Manifest) -> Modelfile:
    """The Modelfile that would build this model again, FROM its own blob; its `options` are those to load it with."""
    commands = [Command("from", str(library.blob(layer.digest))) for layer in manifest.of_kind("model")]
    for kind in TEXTS:
        commands += [Command(kind, library.text(layer)) for layer in manifest.of_kind(kind)]
    for layer in manifest.of_kind("params"):
        for key, value in _record(library, layer).items():
            texts = [_text(item) for item in (value if isinstance(value, list) else [value])]
            commands += [Command("parameter", text, key) for text in texts if key in PARAMETERS]
    for layer in manifest.of_kind("messages"):
        for message in _list(library, layer):
            role, content = (message.get("role"), message.get("content", "")) if isinstance(message, dict) else (0, 0)
            if role not in ROLES or not isinstance(content, str):
                raise LibraryError(f"blob {layer.digest} has a message without a role and a text")
            commands.append(Command("message", content, role))
    config = _record(library, manifest.config)
    for key in ("renderer", "parser", "requires"):
        if config.get(key):
            commands.append(Command(key, _text(config[key])))
    pairs = [pair for layer in manifest.of_kind("settings") for pair in _list(library, layer)]
    if not all(isinstance(pair, list) and [type(part) for part in pair] == [str, str] for pair in pairs):
        raise LibraryError("the model's settings are not pairs of texts")
    settings = [(key, value) for key, value in pairs if key not in PACKED]  # a pulled model names no file of ours
    settings += [(kind, str(library.blob(layer.digest))) for kind in PACKED for layer in manifest.of_kind(kind)]
    return Modelfile(tuple(commands), tuple(settings))


def _record(library: Library, layer: Layer) -> dict[str, Any]:
    value = library.json(layer)
    if not isinstance(value, dict):
        raise LibraryError(f"blob {layer.digest} is no JSON object")
    return value


def _list(library: Library, layer: Layer) -> list[Any]:
    value = library.json(layer)
    if not isinstance(value, list):
        raise LibraryError(f"blob {layer.digest} is no JSON list")
    return value


def _base(
    library: Library, sources: list[str], folder: Path | None, progress: Progress, look: Callable[[Path], None]
) -> tuple[dict[str, Any], tuple[Layer, ...]]:
    """The config and the layers of what FROM names: a blob's digest, a GGUF file or another model.

    `look` is given the model's file before it is copied.
    """
    if len(sources) != 1:
        raise LibraryError("a Modelfile with more than one FROM is not supported: gmoe runs a single GGUF file")
    if sources[0].startswith("sha256:"):
        blob = library.blob(sources[0])
        look(blob)
        return describe(blob), (Layer(OLLAMA_TYPE + "model", sources[0], blob.stat().st_size),)
    path = path_in(folder, sources[0]) if folder else None
    if path and path.is_file():
        progress("parsing GGUF")
        config = describe(path)
        look(path)
        progress("copying the model into the library")
        return config, (put_model(library, path),)
    if path and path.is_dir():
        raise LibraryError(f"{path} is a folder; FROM needs a GGUF file or the name of a model")
    try:
        manifest = library.resolve(ModelName.parse(sources[0]))
    except (InvalidName, ModelNotFound) as error:
        if isinstance(error, ModelNotFound) and not (path and path.suffix == ".gguf"):
            raise
        raise LibraryError(f"FROM {sources[0]}: there is no such file, and it is no name of a model") from None
    if not manifest.of_kind("model"):
        raise LibraryError(f"FROM {sources[0]}: the model has no GGUF layer")
    look(library.blob(manifest.of_kind("model")[0].digest))
    progress(f"using existing model {sources[0]}")
    layers = [layer for layer in manifest.layers if layer.kind != "model"]
    return _record(library, manifest.config), (*manifest.of_kind("model"), *layers)


def _layers(library: Library, modelfile: Modelfile, inherited: Iterable[Layer]) -> list[Layer]:
    """The layers that the texts of the Modelfile itself give."""
    layers = []
    for kind in ("template", "system"):
        text = modelfile.last(kind)
        if text is not None:
            layers.append(library.put_blob(text.encode(), OLLAMA_TYPE + kind))
    layers += [library.put_blob(text.encode(), OLLAMA_TYPE + "license") for text in modelfile.values("license")]
    if modelfile.parameters:
        old = [_record(library, layer) for layer in inherited if layer.kind == "params"]
        layers.append(_put_json(library, {**(old[0] if old else {}), **modelfile.parameters}, OLLAMA_TYPE + "params"))
    if modelfile.messages:
        layers.append(_put_json(library, modelfile.messages, OLLAMA_TYPE + "messages"))
    settings = [list(setting) for setting in modelfile.settings if setting[0] not in PACKED]
    if settings:
        layers.append(_put_json(library, settings, GMOE_TYPE + "settings"))
    return layers


def _files(modelfile: Modelfile, folder: Path | None) -> list[tuple[str, Path]]:
    """The files that settings name; they become layers."""
    files = []
    for kind, value in modelfile.settings:
        if kind in PACKED:
            if folder is None:
                raise LibraryError(f"{kind} names a file, which is not allowed here")
            path = path_in(folder, value)
            if not path.is_file():
                raise LibraryError(f"{kind} {value}: there is no such file")
            files.append((kind, path))
    return files


def _put_file(library: Library, path: Path, media_type: str) -> Layer:
    with path.open("rb") as source:
        return library.put_blob(source, media_type)


def _put_json(library: Library, value: Any, media_type: str) -> Layer:
    return library.put_blob(json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode(), media_type)


def path_in(folder: Path, text: str) -> Path:
    """A file that a Modelfile in `folder` names; `~` is the user's home."""
    return folder / expanded(text)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
