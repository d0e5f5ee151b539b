"""calibrate: the ladder of lossy choices that is measured, and what of a measurement is kept."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gmoe.experts.calibration import Setting
from gmoe.passes.compare import Measured

SURE = 1.96  # standard errors above the mean
MARGIN = 2.0  # for text of another kind than the calibration saw: there, up to 1.8 times the bound was measured


def ladder(twin: Path | None) -> Iterator[dict[str, Any]]:
    """The choices, as fields of RuntimeOptions; gentle before bold within a kind."""
    for prior in (0.02, 0.05, 0.1, 0.2, 0.3):
        yield {"route": "cache_prior", "policy": {"prior": prior}}
    for drop in (0.25, 0.5, 0.75, 1.0):
        yield {"miss": "skip", "policy": {"drop": drop}}
    for prior, drop in ((0.05, 0.5), (0.1, 0.5), (0.1, 0.75)):
        yield {"route": "cache_prior", "miss": "skip", "policy": {"prior": prior, "drop": drop}}
    if twin is not None:
        for t1, t2 in ((0.8, 0.95), (0.6, 0.9), (0.6, 1.0), (0.3, 1.0)):
            yield {"miss": "hobbit", "twin": twin, "policy": {"t1": t1, "t2": t2}}
        yield {"miss": "twin", "twin": twin, "policy": {"share": 1.0}}


def measured_setting(options: dict[str, Any], got: Measured, exact: Measured, resident: float) -> Setting:
    """What is kept of a measurement: `resident` is the part of the experts that had slots."""
    kept = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    kld = max(0.0, got.found.kld.mean)
    cost = exact.tokens_per_second / got.tokens_per_second
    return Setting(kept, kld, MARGIN * (kld + SURE * got.found.kld.error), cost, got.changed, resident)
