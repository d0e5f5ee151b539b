"""calibrate: the ladder of lossy choices that is measured, and what of a measurement is kept."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gmoe.experts.calibration import Setting
from gmoe.passes.compare import Measured, cost
from gmoe.passes.perplexity import Mean

SURE = 1.96  # standard errors above the mean
MARGIN = 2.0  # for text of another kind than the calibration saw: there, up to 1.8 times the bound was measured


def ladder(twin: Path | None) -> Iterator[dict[str, Any]]:
    """The choices, as fields of RuntimeOptions; gentle before bold within a kind."""
    for prior in (0.02, 0.05, 0.1, 0.2):
        yield {"route": "cache_prior", "policy": {"prior": prior}}
    for drop in (0.25, 0.5, 0.75, 1.0):
        yield {"miss": "skip", "policy": {"drop": drop}}
    for prior, drop in ((0.05, 0.5), (0.1, 0.75)):
        yield {"route": "cache_prior", "miss": "skip", "policy": {"prior": prior, "drop": drop}}
    if twin is not None:
        for t1, t2 in ((0.8, 0.95), (0.6, 1.0), (0.3, 1.0)):
            yield {"miss": "hobbit", "twin": twin, "policy": {"t1": t1, "t2": t2}}
        yield {"miss": "twin", "twin": twin, "policy": {"share": 1.0}}


def bound(kld: Mean, texts: Sequence[int]) -> float:
    """What a setting's divergence will hardly exceed, nats a token: MARGIN times the upper end of the 95 % interval of
    the worst text; `texts[n]` windows of `kld` are of text n, in order."""
    at, ends = 0, []
    for count in texts:
        part = Mean(kld.values[at : at + count])
        ends.append(max(0.0, part.mean) + SURE * part.error)
        at += count
    return MARGIN * max(ends)


def measured_setting(
    options: dict[str, Any],
    got: Measured,
    exact: Sequence[Measured],
    texts: Sequence[int],
    resident: float,
    reader: str,
) -> Setting:
    """What is kept of a measurement beside `exact` ones; `resident` is the part of the experts that had slots."""
    kept = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    kld = max(0.0, got.found.kld.mean)
    part, error = cost(got, exact)
    high = bound(got.found.kld, texts)
    return Setting(kept, kld, high, part, part + SURE * error, got.changed, resident, reader)
