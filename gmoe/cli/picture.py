"""Pictures of a trace: experts x layers, reuse, tasks; for the terminal, and as PNG with matplotlib."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gmoe.experts.analysis import GAPS, by_task, counts, difference, reuse
from gmoe.experts.simulate import Report
from gmoe.experts.trace import Trace
from gmoe.whole import whole

SHADES = " .:-=+*#%@"
MOST_TASKS = 12


def gap_names() -> list[str]:
    """What the bins of `GAPS` are called."""
    ends = [*(end - 1 for end in GAPS[1:]), None]
    names = [f"{a}+" if b is None else str(a) if a == b else f"{a}-{b}" for a, b in zip(GAPS, ends, strict=True)]
    return [*names, "never"]


def terminal(trace: Trace, width: int = 100) -> str:
    """The three pictures as text of at most `width` columns."""
    lines = ["experts x layers (each layer's hottest first; darker: chosen more often)"]
    share = np.sort(counts(trace), axis=1)[:, ::-1]
    columns = max(1, min(width - 7, share.shape[1]))
    for layer, row in enumerate(share):
        if row.sum():
            binned = [part.mean() for part in np.array_split(row, columns)]
            level = [min(len(SHADES) - 1, int(len(SHADES) * (v / max(row[0], 1)) ** 0.5)) for v in binned]
            lines.append(f"{layer:5}  " + "".join(SHADES[n] for n in level))
    lines += ["", "passes until an expert is asked for again (decoding)"]
    gaps = reuse(trace)
    lines += [
        f"{name:>7}  {n / max(gaps.sum(), 1):6.1%}  " + "#" * int((width - 20) * n / max(gaps.max(), 1))
        for name, n in zip(gap_names(), gaps, strict=True)
    ]
    tasks = list(by_task(trace, MOST_TASKS).items())
    if len(tasks) > 1:
        lines += ["", "how much the choices of two tasks differ (0 alike, 100 apart)"]
        wide = max(len(name) for name, _ in tasks)
        lines += [
            f"{name[:20]:>{min(wide, 20)}}  " + "".join(f"{100 * difference(mine, other):4.0f}" for _, other in tasks)
            for name, mine in tasks
        ]
    return "\n".join(lines) + "\n"


def png(trace: Trace, path: Path) -> None:
    """The same as a PNG; raises ImportError without matplotlib, OSError as the file system does.

    ValueError where the trace has no rows: there is nothing to draw.
    """
    if not len(trace):
        raise ValueError(f"{path} is not drawn: the trace is empty")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tasks = list(by_task(trace, MOST_TASKS).items())
    figure = Figure(figsize=(13, 9), layout="constrained")
    FigureCanvasAgg(figure)
    heat, gaps, apart = figure.subplot_mosaic([["heat", "heat"], ["gaps", "apart"]]).values()
    count = counts(trace)
    share = count / np.maximum(count.sum(axis=1, keepdims=True), 1)
    figure.colorbar(heat.imshow(share, aspect="auto", cmap="magma"), ax=heat, label="share of the layer's choices")
    heat.set(title=f"{trace.header.model}: who is chosen", xlabel="expert", ylabel="layer")
    found = reuse(trace)
    gaps.bar(gap_names(), found / max(found.sum(), 1))
    gaps.set(title="passes until asked for again", ylabel="share of decode asks")
    matrix = [[difference(a, b) for _, b in tasks] for _, a in tasks]
    figure.colorbar(apart.imshow(matrix, cmap="viridis", vmin=0, vmax=1), ax=apart)
    names = [name for name, _ in tasks]
    apart.set(title="how tasks differ (0 alike, 1 apart)")
    apart.set_xticks(range(len(names)), names, rotation=45, ha="right")
    apart.set_yticks(range(len(names)), names)
    with whole(path) as part:
        figure.savefig(part, format="png", dpi=110)


def curves(reports: Sequence[Report], all_bytes: int, path: Path) -> None:
    """Hit rate and tok/s of each policy over the budget as a PNG; `all_bytes` is what all experts take."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    FigureCanvasAgg(figure)
    hits, speed = figure.subplots(1, 2)
    lines: dict[str, list[Report]] = {}
    for report in reports:
        others = [name for name in (report.prefetch, report.working_set) if name != "none"]
        lines.setdefault(" + ".join([report.evict, *others]), []).append(report)
    for name, line in lines.items():
        share = [100 * report.budget / max(all_bytes, 1) for report in line]
        style = "--" if name in ("belady", "random", "static") else "-"
        hits.plot(share, [100 * report.decode.hit_rate for report in line], style, marker=".", label=name)
        speed.plot(share, [report.decode.tokens_per_second for report in line], style, marker=".", label=name)
    hits.set(xlabel="budget, % of all experts", ylabel="decode hit rate, %")
    speed.set(xlabel="budget, % of all experts", ylabel="predicted decode tok/s")
    hits.legend()
    with whole(path) as part:
        figure.savefig(part, format="png", dpi=110)
