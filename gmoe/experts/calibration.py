"""What was measured of a model's tolerance, kept beside it: sensitivity of its layers, and knobs for a budget."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gmoe.experts.fingerprint import fingerprint
from gmoe.gguf.file import GGUFFile

FORMAT = 1


@dataclass(frozen=True)
class Setting:
    """One choice of policies and knobs, and what it cost on the calibration text."""

    options: dict[str, Any]  # route, miss and policy, as RuntimeOptions has them
    kld: float  # mean, in nats a token
    kld_high: float  # the upper end of its 95 % interval
    cost: float  # bytes read a token, as a part of what loading everything reads


@dataclass(frozen=True)
class Calibration:
    """All that is known of one model."""

    fingerprint: str
    sensitivity: list[float] = field(default_factory=list)  # loss a layer, per square of dropped weight
    settings: list[Setting] = field(default_factory=list)

    def within(self, kld: float) -> Setting | None:
        """The cheapest setting whose divergence is surely at most `kld`."""
        fit = [setting for setting in self.settings if setting.kld_high <= kld]
        return min(fit, key=lambda setting: setting.cost, default=None)


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
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(json.dumps({"format": FORMAT, **asdict(calibration)}, indent=1))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path
