"""The trade-off of every lossy policy: `python -m tools.bench_quality MODEL.gguf --corpus FOLDER`.

MODEL is the demo model in F16. It is widened to real bytes, and half and a quarter of its experts are kept in memory,
the others on disk. Each setting runs beside exact on-demand loading, token by token, on held-out text. What has been
measured stays in --work, so that a long run may be cut by --seconds and gone on with. Writes the table and the plot.
"""

import argparse
import json
import lzma
import os
import platform
import shlex
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

import gmoe
from gmoe.experts import calibration
from gmoe.experts.fingerprint import fingerprint
from gmoe.gguf.file import GGUFFile
from gmoe.passes.compare import Measured, Runner, base_of, in_turn, speedups
from gmoe.passes.perplexity import windows
from gmoe.passes.sensitivity import DropTail, sensitivities
from gmoe.passes.twin import twin
from tools.widen import widen

DOMAINS = ("stories", "docs", "python", "dialogue", "french", "maths")
TOGETHER = 4  # settings that run in turn with exact
RESIDENT = (0.5, 0.25)
SPEED = {
    True: "Speed is a ratio to exact on-demand loading, the median of the windows, which all run in turn.",
    False: "**Speeds are not shown: the machine was busy with other work.** Bytes are a ratio to exact.",
}
EXACT: dict[str, Any] = {"label": "exact, on demand"}


def settings(twins: Path) -> list[dict[str, Any]]:
    """Every row of the table: a label, fields of RuntimeOptions, knobs."""
    rows: list[dict[str, Any]] = []

    def add(kind: str, name: str, *choices: dict[str, Any], **more: Any) -> None:
        for knobs in choices:
            said = ", ".join(f"{knob} {value:g}" for knob, value in knobs.items())
            rows.append({"label": f"{name} {said}".strip(), kind: name, "policy": knobs, **more})

    add("miss", "skip", {"drop": 0.75}, {"drop": 1.0})
    add("miss", "hobbit", {"t1": 0.6, "t2": 0.9}, {"t1": 0.6, "t2": 1.0}, {"t1": 0.3, "t2": 1.0}, twin=str(twins))
    add("miss", "twin", {"share": 1.0}, {"share": 1.0, "behind": 1}, twin=str(twins))
    add("miss", "buddy", {"tau": 0.9, "beta": 0.6})
    add("miss", "merged", {"share": 0.2})
    add("route", "cache_prior", {"prior": 0.05}, {"prior": 0.15})
    add("route", "smoe", {"alpha": 0.3})
    add("route", "odp", {"beta": 0.4})
    add("route", "little", {"mass": 0.7})
    add("route", "adaptive_k", {"threshold": 0.005})
    add("route", "resident_only", {"keep": 2})
    add("miss", "random_skip", {"part": 0.3})
    add("miss", "random_substitute", {"part": 0.3})
    rows.append({"label": "zero everything absent", "miss": "skip", "policy": {"drop": 1024.0}})
    return rows


def prepare(given: argparse.Namespace) -> tuple[Path, Path]:
    """The widened model, its twin and a trace of it."""
    work: Path = given.work
    work.mkdir(parents=True, exist_ok=True)
    model, twins = work / "model.gguf", work / "twin.gguf"
    if not model.exists():
        widen(given.model, model, given.n_embd, given.n_ff_exp, given.type)
    if not twins.exists():
        twin(model, twins, given.twin_type)
    return model, twins


def texts(corpus: Path, part: str, size: int) -> list[str]:
    """The first or last `size` characters of each domain's held-out text."""
    found = [lzma.open(corpus / f"{name}.test.txt.xz", "rt", encoding="utf-8").read() for name in DOMAINS]
    return [text[:size] if part == "first" else text[-size:] for text in found]


def cut_of(model: Path, given: argparse.Namespace, part: str = "first") -> list[list[int]]:
    """Windows of all domains, and one more to warm up with."""
    tokenizer = gmoe.Tokenizer.from_file(model)
    cut: list[list[int]] = []
    for text in texts(given.corpus, part, 40 * given.tokens * given.windows):
        ids = tokenizer.encode(text, add_special=False, parse_special=False)
        cut += windows(ids, given.tokens, None, given.windows)
    return [cut[0], *cut]


def options(row: dict[str, Any], memory: int, context: int) -> gmoe.RuntimeOptions:
    """As RuntimeOptions: LRU and nothing read ahead, so that what differs is the setting alone."""
    chosen = {name: value for name, value in row.items() if name != "label"}
    plain = {"evict": "lru", "prefetch": "none", "working_set": "none", "reader": "direct"}
    return gmoe.RuntimeOptions(
        device="cpu", host_memory=str(memory), context=context, max_sequences=1, **(plain | chosen)
    )


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Measure what is not yet measured, for at most `seconds`; a few settings and exact in turn."""
    model, twins = prepare(given)
    log = given.work / "results.json"
    results: dict[str, Any] = json.loads(log.read_text()) if log.exists() else {}
    cut = cut_of(model, given)
    trace = model.with_suffix(".trace")
    with gmoe.LLM.load(model, gmoe.RuntimeOptions(device="cpu", context=given.tokens, max_sequences=1)) as llm:
        base, budget = base_of(llm, cut[1:]), llm.budget
        if not trace.exists():
            recorder = llm.record()
            for window in cut_of(model, given, "last"):
                llm.logits(window)
            recorder.trace().save(trace)
        with GGUFFile.open(model) as file:
            if not calibration.path_of(file).exists():
                llm.dispatch.route = policy = DropTail()
                args = policy, llm.logits, list(llm.layout.layers), llm.hparams.n_layer, cut_of(model, given, "last")
                found = [value for _, value in sensitivities(*args)]  # every layer of the demo model is routed
                calibration.save(file, calibration.Calibration(fingerprint(file), found))
    kept, groups = trace.read_bytes(), [(group.experts, group.slot_bytes) for group in budget.groups]
    began = time.monotonic()

    for resident in RESIDENT:
        memory = budget.fixed + int(resident * sum(experts * size for experts, size in groups))
        keys = {f"{resident:g} {row['label']}": row for row in settings(twins)}
        wanted = [key for key in keys if key not in results and any(part in key for part in given.only or [""])]
        for at in range(0, len(wanted), TOGETHER):
            if given.seconds and time.monotonic() - began > given.seconds:
                return results
            with ExitStack() as stack:
                llms: dict[str, Runner] = {}
                for key, row in [("exact", EXACT), *((key, keys[key]) for key in wanted[at : at + TOGETHER])]:
                    try:
                        llms[key] = stack.enter_context(gmoe.LLM.load(model, options(row, memory, given.tokens)))
                    except ValueError as error:
                        print(f"{key}: {error}")
                measured = in_turn(llms, cut[1:], base, cut[0])
            trace.write_bytes(kept)  # all begin with the same knowledge
            exact = measured.pop("exact")
            results |= {key: kept_of(got, exact) for key, got in measured.items()}
            print(json.dumps({key: results[key] for key in measured}), flush=True)
            log.write_text(json.dumps(results, indent=1))
    return results


def kept_of(got: Measured, exact: Measured) -> dict[str, Any]:
    """What is kept of a setting that ran in turn with exact."""
    return {
        "ratio": statistics.median(speedups(got, exact)), "exact": exact.tokens_per_second,
        "bytes": got.bytes_per_token, "exact_bytes": exact.bytes_per_token, "ppl": got.ppl,
        "exact_ppl": exact.ppl, "kld": got.found.kld.mean, "kld_error": got.found.kld.error,
        "top": got.found.same_top.mean, "shares": dict(got.shares),
    }  # fmt: skip


def table(results: dict[str, Any], given: argparse.Namespace) -> str:
    """The page."""
    asked = f" --type {given.type} --windows {given.windows} --only {shlex.join(given.only)}" if given.only else ""
    lines = [
        "# What lossy choices cost and bring", "",
        f"`python -m tools.bench_quality {given.model.name} --corpus CORPUS{asked}`, {date.today()}, "
        f"{platform.machine()} with {len(os.sched_getaffinity(0))} cores: the demo model widened to "
        f"n_embd {given.n_embd}, n_ff_exp {given.n_ff_exp} in {given.type}, twin in {given.twin_type}; "
        f"{len(DOMAINS) * given.windows} windows of {given.tokens} tokens of held-out {', '.join(DOMAINS)}, token by "
        f"token, direct reads from disk. {SPEED[not given.untimed]} KLD in nats a token with its standard error.", "",
    ]  # fmt: skip
    for resident in RESIDENT:
        part = {key.partition(" ")[2]: row for key, row in results.items() if key.startswith(f"{resident:g} ")}
        if not part:
            continue
        exact = statistics.median(row["exact"] for row in part.values())
        read = statistics.median(row["exact_bytes"] for row in part.values())
        ppl = next(iter(part.values()))["exact_ppl"]
        lines += [f"## {resident:.0%} of the experts in memory", ""]
        speed = "" if given.untimed else f"{exact:.1f} tok/s, "
        lines += [f"Exact: {speed}{read / (1 << 20):.2f} MiB read a token, perplexity {ppl:.3f}.", ""]
        what = "bytes" if given.untimed else "tok/s"
        lines += [f"| setting | {what} ratio | MiB a token | perplexity | KLD | same top | served otherwise |"]
        lines += ["|---|---|---|---|---|---|---|"]
        for label, row in part.items():
            changed = ", ".join(f"{name} {share:.1%}" for name, share in row["shares"].items() if share > 0)
            lines.append(
                f"| {label} | {ratio(row, given.untimed):.2f} | {row['bytes'] / (1 << 20):.2f} | {row['ppl']:.3f} | "
                f"{max(0.0, row['kld']):.4f} ± {row['kld_error']:.4f} | {row['top']:.1%} | {changed or 'nothing'} |"
            )
        lines.append("")
    if not given.only:
        lines += [f"![KLD against speed or bytes]({given.out.stem}.png)", ""]
    return "\n".join(lines)


def ratio(row: dict[str, Any], untimed: bool) -> float:
    """To exact: of tokens a second, or of bytes read."""
    return float(row["bytes"] / row["exact_bytes"] if untimed else row["ratio"])


def plot(results: dict[str, Any], target: Path, untimed: bool) -> None:
    """KLD against speed, or against bytes read, a colour a policy."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(RESIDENT), figsize=(12, 5), sharey=True)
    for axis, resident in zip(axes, RESIDENT, strict=True):
        points: dict[str, list[tuple[float, float]]] = {}
        for key, row in results.items():
            share, name = key.split(" ")[:2]
            if share == f"{resident:g}":
                points.setdefault(name, []).append((ratio(row, untimed), max(row["kld"], 1e-5)))
        for n, (name, at) in enumerate(points.items()):
            axis.plot(*np.array(sorted(at)).T, marker="os^Dv"[n % 5], label=name)
        axis.set(
            yscale="log",
            xlabel=f"{'bytes read' if untimed else 'speed'}, ratio to exact",
            title=f"{resident:.0%} of the experts in memory",
        )
        axis.axvline(1, color="grey", linewidth=0.5)
    axes[0].set_ylabel("KLD, nats a token")
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(target, dpi=90)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("bench_quality"))
    parser.add_argument("--n-embd", type=int, default=1024)
    parser.add_argument("--n-ff-exp", type=int, default=1024)
    parser.add_argument("--type", default="Q4_K_M")
    parser.add_argument("--twin-type", default="Q2_K")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--windows", type=int, default=1, help="of each domain")
    parser.add_argument("--seconds", type=float, default=0, help="stop after so many; 0: when all is done")
    parser.add_argument("--untimed", action="store_true", help="the machine is busy: tell bytes, not speeds")
    parser.add_argument("--only", nargs="+", help="only settings whose label has one of these texts; no plot")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/quality.md"))
    return parser.parse_args(arguments)


def main() -> None:
    """Measure, then write the page and the picture."""
    given = parse()
    results = run(given)
    if results:
        given.out.write_text(table(results, given))
        if not given.only:
            plot(results, given.out.with_suffix(".png"), given.untimed)


if __name__ == "__main__":
    main()
