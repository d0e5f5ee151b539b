"""What a Modelfile or a command says that nothing could be loaded with: known before any model is."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gmoe.engine.choices import AVAILABLE, DEVICE_ONLY, on_device, require_available
from gmoe.engine.sampling import SamplingParams
from gmoe.experts import policy
from gmoe.experts.calibration import budget_of
from gmoe.experts.fingerprint import header
from gmoe.experts.trace_file import TraceFile
from gmoe.gguf.file import GGUFFile, UnsupportedModel
from gmoe.gguf.hparams import Hparams
from gmoe.gguf.layout import ExpertLayout
from gmoe.library.find import Package
from gmoe.library.modelfile import Command, Modelfile
from gmoe.options import POLICIES, RuntimeOptions
from gmoe.tokenizer.gofunctions import TemplateError
from gmoe.tokenizer.gotemplate import GoTemplate
from gmoe.tokenizer.parsers.choose import require_parser

NOBODY: Mapping[str, Any] = {  # what policies are given, of a model with a single expert
    "shape": (1, 1), "routers": None, "buddies": {}, "merged": (), "sensitivity": (), "costs": None,
}  # fmt: skip


def require_loadable(item: Command, options: Mapping[str, Any]) -> None:
    """A `Check` for `parse_modelfile`: raises ValueError for what is refused wherever the model is loaded.

    What depends on the machine or on the model is not looked at.
    """
    if item.name == "parser":
        require_parser(item.value)
    elif item.name == "parameter":
        package = Package(Path(), Modelfile((item,)))
        package.options()
        try:
            SamplingParams(**package.sampling)
        except ValueError as error:
            told = str(error)  # by our name, which is not always Ollama's
            raise ValueError(told if told.startswith(item.key) else f"{item.key}: {told}") from None
    elif item.name == "#":
        _require_setting(item.key, item.value, RuntimeOptions(**options))


def require_options(options: RuntimeOptions) -> None:
    """Raises ValueError for what is refused here whichever model is loaded, and whatever its Modelfile adds."""
    device = options.device
    if device == "auto":
        device = "cuda" if options.miss not in DEVICE_ONLY or _card() else "cpu"
    require_available(on_device(options, device)[0])
    budget_of(options)
    default = RuntimeOptions()
    chosen = {kind: name for kind in POLICIES if (name := getattr(options, kind)) != "auto"}
    others = [kind for kind in POLICIES if getattr(options, kind) == getattr(default, kind)]
    for knob in options.policy:
        if not any(knob in policy.knobs_of(kind, name) for kind in others for name in policy.names(kind)):
            _require_knob(knob, options.policy, chosen)


def _card() -> bool:
    from gmoe.experts.device_auto import usable  # which imports torch

    return usable()


def options_to_load(package: Package, given: RuntimeOptions | None = None) -> RuntimeOptions:
    """`Package.options`, where knobs of a policy leave with it if another is `given` in its place."""
    options, given = package.options(given), given or RuntimeOptions()
    now = {kind: getattr(options, kind) for kind in POLICIES}
    before = {kind: getattr(RuntimeOptions(**package.modelfile.options), kind) for kind in POLICIES}
    stay = {kind: name for kind, name in now.items() if name == before[kind]}
    gone = _knobs_of(before) - _knobs_of(stay) - set(given.policy)
    return replace(options, policy={knob: value for knob, value in options.policy.items() if knob not in gone})


def hparams_of(file: GGUFFile) -> Hparams:
    """What the file says; an architecture that is unknown is told before the keys that it lacks."""
    from gmoe.models.decoder import refusal  # which imports torch

    if file.architecture and (why := refusal(file.architecture)):
        raise UnsupportedModel(str(file.path), "general.architecture", why)
    return Hparams.from_metadata(file.metadata, str(file.path))


def passed_over(modelfile: Modelfile) -> list[str]:
    """What loading would do without, a sentence each."""
    try:
        GoTemplate.parse(modelfile.last("template") or "")
    except TemplateError as error:
        return [f"the TEMPLATE cannot be used, the GGUF's chat template will be: {error}"]
    return []


def require_fitting(kind: str, path: Path, model: Path) -> None:
    """Raises ValueError where the file is no "twin" or no "trace" of this model."""
    with GGUFFile.open(model) as file:
        hparams = hparams_of(file)
        layout = ExpertLayout(file, hparams.n_layer, hparams.n_expert)
        if kind == "trace":
            TraceFile(model, path, header(file, layout, hparams.n_layer))
            return
        from gmoe.experts.twin import open_twin  # which imports torch

        twin, _ = open_twin(path, file, layout)
        twin.close()


def _require_setting(key: str, value: str, options: RuntimeOptions) -> None:
    if key in (*AVAILABLE, "gpu_memory"):
        device = "cuda" if options.device == "auto" else options.device  # there may be a card
        given: dict[str, Any] = {"device": device, key: value}
        require_available(RuntimeOptions(**given))
    elif key in ("quality", "max_kld"):
        budget_of(options)
    elif key.startswith("policy."):
        chosen = {kind: name for kind in POLICIES if (name := getattr(options, kind)) != "auto"}
        if all(name in AVAILABLE[kind] for kind, name in chosen.items()):  # one that is not is told where it stands
            _require_knob(key.removeprefix("policy."), options.policy, chosen)


def _require_knob(knob: str, knobs: Mapping[str, Any], chosen: Mapping[str, str]) -> None:
    """Raises `PolicyError` where no policy has it or one refuses it; what it refuses of several, at the last."""
    for kind, alone in policy.share_out(chosen, {knob: knobs[knob]}).items():
        together = {name: knobs[name] for name in knobs if name in policy.knobs_of(kind, chosen[kind])}
        try:
            policy.load(kind, chosen[kind], together if alone else {}, **NOBODY)
        except policy.PolicyError:
            if knob == list(together)[-1] or not _stands(kind, chosen[kind], alone):
                raise


def _knobs_of(chosen: Mapping[str, str]) -> set[str]:
    """What the policies take that are known; one that is not is refused elsewhere."""
    return {knob for kind, name in chosen.items() if name in policy.names(kind) for knob in policy.knobs_of(kind, name)}


def _stands(kind: str, name: str, knobs: Mapping[str, Any]) -> bool:
    try:
        policy.load(kind, name, knobs, **NOBODY)
    except policy.PolicyError:
        return False
    return True
