"""What a user means by MODEL: a path, or a name in the library with what its Modelfile says."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmoe.library.home import expanded
from gmoe.library.modelfile import Modelfile
from gmoe.options import RuntimeOptions

if TYPE_CHECKING:
    from gmoe.library.manifest import Library
    from gmoe.library.name import ModelName

SAMPLING = {  # Ollama's name: ours
    **{name: name for name in ("temperature", "top_k", "top_p", "min_p", "typical_p", "repeat_last_n", "stop")},
    **{name: name for name in ("repeat_penalty", "presence_penalty", "frequency_penalty", "seed")},
    "num_predict": "max_tokens",
}


@dataclass(frozen=True)
class Package:
    """A GGUF file, and its Modelfile where it comes from the library."""

    path: Path
    modelfile: Modelfile = Modelfile(())

    def options(self, given: RuntimeOptions | None = None) -> RuntimeOptions:
        """What to load it with: what is `given` and not a default, or insisted upon, else what the Modelfile says.

        Of knobs each is looked at by itself. Raises ValueError.
        """
        default, given = RuntimeOptions(), given or RuntimeOptions()
        own, parameters = self.modelfile.options, self.modelfile.parameters
        for parameter, name in (("num_ctx", "context"), ("num_thread", "threads")):
            if parameter in parameters:
                value = max(0, parameters[parameter])  # to Ollama what is below 0 is automatic too
                try:
                    RuntimeOptions(**{name: value})
                except ValueError as error:
                    raise ValueError(f"{parameter}: {error}") from None
                own.setdefault(name, value)
        changed = {f.name: getattr(given, f.name) for f in fields(given)}
        changed = {
            name: value for name, value in changed.items() if value != getattr(default, name) or name in given.insisted
        }
        if "policy" in changed:
            changed["policy"] = {**own.get("policy", {}), **changed["policy"]}
        for one, other in (("quality", "max_kld"), ("max_kld", "quality")):  # they say the same, and choose the others
            for name in (other, "route", "miss") if one in changed else ():
                own.pop(name, None)
        return replace(RuntimeOptions(**own), **changed)

    @property
    def sampling(self) -> dict[str, Any]:
        """Its parameters as keyword arguments of `SamplingParams`."""
        values = {SAMPLING[key]: value for key, value in self.modelfile.parameters.items() if key in SAMPLING}
        for name, least in (("max_tokens", 1), ("seed", 0)):  # to Ollama what is below has no end, or is any seed
            if values.get(name, least) < least:
                del values[name]
        if "top_k" in values:
            values["top_k"] = max(0, values["top_k"])  # Ollama's -1 is off too
        values |= {name: min(values[name], 1.0) for name in ("top_p", "typical_p") if name in values}  # and so is 2
        return values | ({"stop": tuple(values["stop"])} if "stop" in values else {})


def find(model: str | Path) -> Package:
    """A model by its path or name; a `ValueError` where there is none, or one that gmoe cannot run."""
    path = expanded(model)
    if path.is_file():
        return Package(path)
    if path.is_dir() and str(model):
        raise ValueError(f"{model} is a folder; name the GGUF file in it")
    if path.suffix == ".gguf" or path.is_absolute() or str(model).startswith("."):
        raise ValueError(f"{model}: {'it is no regular file' if path.exists() else 'there is no such file'}")
    from gmoe.library.manifest import Library  # a path does not wait for the library
    from gmoe.library.name import ModelName

    return package_of(Library.default(), ModelName.parse(str(model)))


def package_of(library: "Library", name: "ModelName") -> Package:
    """A model of a library; a `LibraryError` where there is none, or one that gmoe cannot run."""
    from gmoe.library.create import modelfile_of
    from gmoe.library.manifest import LibraryError

    manifest = library.resolve(name)
    if manifest.of_kind("adapter"):
        raise LibraryError(f"model '{name}' has an adapter, which gmoe cannot apply")
    return Package(library.model_path(name), modelfile_of(library, manifest))


def model_file(name: str | Path) -> Path:
    """The GGUF file of a model; a `ValueError` where there is none of that name."""
    return find(name).path
