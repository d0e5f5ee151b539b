"""Which file a user means by MODEL: a path, `demo`, or a name in the library."""

from pathlib import Path

DEMO = Path(__file__).parents[1] / "demo" / "demo.gguf"


def model_file(name: str | Path) -> Path:
    """The GGUF file of a model; a `ValueError` where there is none of that name."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        raise ValueError(f"{name} is a folder; name the GGUF file in it")
    if str(name) == "demo" and DEMO.is_file():
        return DEMO
    if path.suffix == ".gguf" or path.is_absolute() or str(name).startswith("."):
        raise ValueError(f"{name}: there is no such file")
    from gmoe.library.manifest import Library  # a path does not wait for the library
    from gmoe.library.name import ModelName

    return Library.default().model_path(ModelName.parse(str(name)))
