"""The models of a session: opened as the flags of the command say, and saved with what was said."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from gmoe.cli.output import say_notes
from gmoe.cli.progress import waiting
from gmoe.engine.sampling import SamplingParams
from gmoe.library.find import SAMPLING, model_file
from gmoe.options import RuntimeOptions

ROOT = Path("/")  # every path of a saved Modelfile is absolute


class Opened(NamedTuple):
    """A loaded model, the parameters of its answers, and the seconds that loading took."""

    llm: Any
    params: SamplingParams
    seconds: float


class Models:
    """Opens models; `options` and the sampling flags that were `given` count for each of them.

    Where a format is to be followed, `thinks` says whether thinking comes first; the dialect then says where the format
    begins, unless `grammar_after` does. None: there is no format.
    """

    def __init__(
        self, options: RuntimeOptions, given: Mapping[str, Any], insecure: bool = False, thinks: bool | None = None
    ):
        self.options, self.given, self.insecure, self._thinks = options, given, insecure, thinks

    def file_of(self, model: str) -> Path:
        """Its file, pulled first where the library does not have it and its name says where it is."""
        from gmoe.library.manifest import ModelNotFound

        try:
            return model_file(model)
        except ModelNotFound as missing:
            if "/" not in model:
                raise ValueError(f"{missing}; gmoe pull {model} would fetch it") from None
        from gmoe.cli.library import fetch_model

        fetch_model(model, self.insecure)
        return model_file(model)

    def open(self, model: str) -> Opened:
        """Load it and say what there is to be said; a `ValueError` or `OSError` where it cannot be."""
        path = self.file_of(model)
        name = path.name if path == Path(model) else model  # a model of the library lies under a digest
        began = time.perf_counter()
        with waiting(f"loading {name}") as say:
            from gmoe.llm import LLM
            from gmoe.tokenizer.parsers.choose import end_of_thinking, headed

            llm = LLM.load(model, self.options, lambda said: say(f"loading {name}, {said}"))
        say_notes(llm.notices)
        said = {f.name: self.given[f.name] for f in fields(SamplingParams) if f.name in self.given}
        begins = self._thinks or (self._thinks is not None and headed(llm.dialect))
        if begins and said.get("grammar_after") is None:
            said["grammar_after"] = end_of_thinking(llm.dialect)
        return Opened(llm, replace(llm.defaults, **said), time.perf_counter() - began)


class Saved(NamedTuple):
    """The digest of the model's GGUF blob, and what has no place in a Modelfile."""

    digest: str
    left_out: list[str]


def save(
    name: str, source: str, llm: Any, params: SamplingParams, system: str | None, messages: Sequence[Mapping[str, str]]
) -> Saved:
    """Name a model of the library: the loaded one, with these parameters and system text, and messages behind its own.

    `source` is where it came from: a path, a name, or the digest of a blob. Raises `ValueError` and `OSError`.
    """
    from gmoe.library.create import create
    from gmoe.library.manifest import Library
    from gmoe.library.modelfile import Command, Modelfile
    from gmoe.library.name import ModelName

    library, own = Library.default(), llm.modelfile
    values, left_out = _parameters(own.parameters, params, llm.defaults)
    commands = [Command("from", _base(library, source))]
    commands += [one for one in own.commands if one.name not in ("from", "system", "parameter", "message")]
    if system or own.last("system"):
        commands.append(Command("system", system or own.last("system")))
    commands += [Command("parameter", text, key) for key, texts in values.items() for text in texts]
    commands += [Command("message", one["content"], one["role"]) for one in (*own.messages, *messages)]
    with waiting(f"saving {name}") as say:
        manifest = create(library, ModelName.parse(name), Modelfile(tuple(commands), own.settings), ROOT, say)
    return Saved(manifest.of_kind("model")[0].digest, left_out)


def _base(library: Any, source: str) -> str:
    """What FROM says: a file, or the blob of a model, so that nothing of what its name stands for now is inherited."""
    from gmoe.library.home import expanded
    from gmoe.library.name import ModelName

    path = expanded(source)
    if path.is_file():
        return str(path.resolve())
    if source.startswith("sha256:"):
        return source
    return str(library.resolve(ModelName.parse(source)).of_kind("model")[0].digest)


def _parameters(
    own: Mapping[str, Any], params: SamplingParams, defaults: SamplingParams
) -> tuple[dict[str, list[str]], list[str]]:
    """The model's own PARAMETERs with the session's over them, as texts, and the fields that have no such name."""
    theirs = {ours: name for name, ours in SAMPLING.items()}
    values, left_out = dict(own), []
    for field in fields(SamplingParams):
        value = getattr(params, field.name)
        if value == getattr(defaults, field.name):
            continue
        if field.name in theirs:
            values[theirs[field.name]] = -1 if value is None else value
        else:
            left_out.append(field.name)
    return {key: [_text(one) for one in _each(value)] for key, value in values.items()}, left_out


def _each(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else [value]


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
