"""What was measured of a model's tolerance, kept beside it: sensitivity of its layers, and knobs for a budget."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from gmoe.experts.fingerprint import fingerprint
from gmoe.gguf.file import GGUFFile
from gmoe.options import RuntimeOptions
from gmoe.whole import whole

FORMAT = 2
DEVICE = "device"  # experts were on a card and the others copied there
CHANGES = ("cpu", "twin", "skip", "substitute")


@dataclass(frozen=True)
class Setting:
    """One choice of policies and knobs, and what it cost on the calibration text."""

    options: dict[str, Any]  # route, miss and policy, as RuntimeOptions has them
    kld: float  # mean, in nats a token
    kld_high: float  # what it will hardly exceed: `gmoe.passes.calibrate.bound`
    cost: float  # seconds a token, as a part of what loading everything takes
    cost_high: float  # the upper end of its 95 % interval
    changed: float  # the part of the routed weight that was served otherwise
    resident: float  # the part of the experts that were in memory
    reader: str  # how the others came: "direct" or "mapped", or DEVICE

    def estimate(self, shares: Mapping[str, float]) -> float:
        """The divergence of a run that changed these shares of the routed weight, in proportion to the measured one."""
        changed = sum(share for name, share in shares.items() if name != "cpu")
        return self.kld * changed / self.changed if self.changed else 0.0


@dataclass(frozen=True)
class Calibration:
    """All that is known of one model."""

    fingerprint: str
    sensitivity: list[float] = field(default_factory=list)  # loss a layer, per square of dropped weight
    settings: list[Setting] = field(default_factory=list)

    def within(self, kld: float, on_device: bool = False) -> Setting | None:
        """The cheapest setting that is surely cheaper than exact, and whose divergence is surely at most `kld`."""
        fit = [setting for setting in self.of(on_device) if setting.kld_high <= kld and setting.cost_high < 1]
        return min(fit, key=lambda setting: setting.cost, default=None)

    def of(self, on_device: bool) -> list[Setting]:
        """Those measured on a device, or those measured without one: the others' costs say nothing."""
        return [setting for setting in self.settings if (setting.reader == DEVICE) == on_device]


QUALITIES = {"high": 0.01, "balanced": 0.03, "fast": 0.1}  # nats a token


def budget_of(options: RuntimeOptions) -> float:
    """Nats a token that `quality` or `max_kld` allow; 0: none. Raises ValueError where a policy is named beside it."""
    budget = options.max_kld if options.max_kld is not None else QUALITIES.get(options.quality)
    if not budget:
        return 0.0
    named = [name for name in ("route", "miss") if getattr(options, name) not in ("auto", "exact", "load")]
    if named or options.policy:
        what = f"{named[0]}={getattr(options, named[0])!r}" if named else "a knob"
        raise ValueError(f"quality and max_kld choose the lossy policies; {what} cannot be given as well")
    return budget


def chosen(options: RuntimeOptions, model: GGUFFile) -> tuple[RuntimeOptions, Setting | None]:
    """The options that `quality` or `max_kld` stand for, and the setting they come from; None: all stays exact.

    Raises ValueError where the model was never calibrated, or a policy is named beside the budget.
    """
    budget = budget_of(options)
    if not budget:
        return options, None
    setting = load(model).within(budget, options.device.startswith("cuda"))
    return (options, None) if setting is None else (replace(options, **setting.options), setting)


def shares(after: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> dict[str, float]:
    """Parts of the routed weight that were not served as the router said, from an LLM's `stats`."""
    groups = {**{name: ("actions", name) for name in CHANGES}, "rerouted": ("rerouted",)}

    def mass(stats: Mapping[str, Any], path: tuple[str, ...]) -> float:
        for name in path:
            stats = stats[name]
        return float(stats["mass"])

    def grown(path: tuple[str, ...]) -> float:
        return mass(after, path) - (mass(before, path) if before else 0.0)

    total = grown(("routed",))
    return {name: grown(path) / total if total > 0 else 0.0 for name, path in groups.items()}


def path_of(model: GGUFFile) -> Path:
    """Where a model's calibration lies."""
    return model.path.with_name(model.path.name + ".calibration.json")


def load(model: GGUFFile) -> Calibration:
    """Raises ValueError where there is none, or it is another model's or damaged."""
    path = path_of(model)
    try:
        said = json.loads(path.read_text())
        if said.pop("format") != FORMAT:
            raise ValueError("its format is unknown")
        settings = [Setting(**setting) for setting in said.pop("settings")]
        found = Calibration(**said, settings=settings)
    except FileNotFoundError:
        raise ValueError(
            f"{path}: the model was never calibrated; `gmoe calibrate {model.path} -f TEXT` does"
        ) from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: not a calibration, or a damaged one ({error})") from None
    if found.fingerprint != fingerprint(model):
        raise ValueError(f"{path}: a calibration of another model")
    return found


def save(model: GGUFFile, calibration: Calibration) -> Path:
    """Write it whole or not at all; returns where."""
    path = path_of(model)
    with whole(path) as part:
        part.write_text(json.dumps({"format": FORMAT, **asdict(calibration)}, indent=1))
    return path
