"""Whether calibrated budgets hold on unseen text: `python -m tools.check_budget MODEL.gguf --corpus FOLDER`.

MODEL is the demo model in F16; it is widened, `gmoe calibrate` runs on the beginnings of a few held-out texts, and each
--quality, and a --max-kld between, then answers to texts that it never saw: later parts of the same kind, and other
kinds. All experts that are not in memory are read past the page cache. What has been measured stays in --work, so that
a long run may be cut by --seconds and gone on with. Writes a table.
"""

import argparse
import json
import lzma
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from typing import Any

import gmoe
from gmoe.experts.calibration import QUALITIES
from gmoe.passes.calibrate import MARGIN, SURE
from gmoe.passes.compare import Measured, Runner, base_of, in_turn, speedups
from gmoe.passes.perplexity import windows
from gmoe.passes.twin import twin
from tools.widen import widen

SEEN = ("stories", "docs", "python")
BUDGETS = dict(sorted({**QUALITIES, "max_kld": 0.02}.items(), key=lambda item: item[1]))  # and one between two of them
OTHERS = ("dialogue", "french", "german", "maths", "structured", "instruct")


def text(corpus: Path, domain: str, half: int) -> str:
    """One half of a domain's test split."""
    whole = lzma.open(corpus / f"{domain}.test.txt.xz", "rt", encoding="utf-8").read()
    middle = len(whole) // 2
    return whole[middle:] if half else whole[:middle]


def calibrate(model: Path, twins: Path, memory: str, given: argparse.Namespace) -> None:
    """Run the command on the first halves of SEEN, a file each; what it says is kept beside them."""
    command = [sys.executable, "-c", "from gmoe.cli.main import cli; cli()", "calibrate", str(model)]
    for domain in SEEN:
        source = given.work / f"{domain}.txt"
        source.write_text(text(given.corpus, domain, 0)[: 8 * given.ctx_size * (given.chunks + 1)])
        command += ["-f", str(source)]
    command += ["--host-memory", memory, "--twin", str(twins), "--reader", "direct"]
    subprocess.run([*command, "-c", str(given.ctx_size), "--chunks", str(given.chunks)], check=True)


def memory_for(model: Path, resident: float) -> str:
    """Bytes that hold this part of the experts."""
    with gmoe.LLM.load(model, gmoe.RuntimeOptions(device="cpu", context=32, max_sequences=1)) as llm:
        experts = sum(group.experts * group.slot_bytes for group in llm.budget.groups)
        return str(llm.budget.fixed + int(resident * experts))


def unseen(model: Path, memory: str, domain: str, given: argparse.Namespace) -> dict[str, Any]:
    """Of each quality what it chose, and what that cost on the second half of a text."""
    ids = gmoe.Tokenizer.from_file(model).encode(text(given.corpus, domain, 1), add_special=False, parse_special=False)
    warm, *cut = windows(ids, given.ctx_size, None, given.windows + 1)
    with gmoe.LLM.load(model, gmoe.RuntimeOptions(device="cpu", context=given.ctx_size, max_sequences=1)) as llm:
        base = base_of(llm, cut)

    plain = {"context": given.ctx_size, "max_sequences": 1, "reader": "direct", "host_memory": memory, "device": "cpu"}
    asked: dict[str, dict[str, Any]] = {name: {"quality": name} for name in ("exact", *QUALITIES)}
    asked["max_kld"] = {"max_kld": BUDGETS["max_kld"]}
    with ExitStack() as stack:
        chosen: dict[str, str] = {}
        runs: dict[str, Runner] = {}  # by setting: two qualities that choose the same are measured once
        for quality, budget in asked.items():
            llm = stack.enter_context(gmoe.LLM.load(model, gmoe.RuntimeOptions(**plain, **budget)))
            chosen[quality] = named(llm.cache.setting.options if llm.cache.setting else {})
            runs.setdefault(chosen[quality], llm)
        found = in_turn(runs, cut, base, warm)
    return {quality: row(chosen[quality], found[chosen[quality]], found["exact"]) for quality in BUDGETS}


def named(options: Mapping[str, Any]) -> str:
    """A setting in words."""
    names = [str(options[kind]) for kind in ("route", "miss") if kind in options]
    knobs = [f"{name} {value:g}" for name, value in options.get("policy", {}).items()]
    return " ".join([" + ".join(names), ", ".join(knobs)]) if options else "exact"


def row(said: str, got: Measured, exact: Measured) -> dict[str, Any]:
    """What is kept of a run."""
    faster = speedups(got, exact)
    return {
        "said": said, "kld": max(0.0, got.found.kld.mean), "error": got.found.kld.error,
        "top": got.found.same_top.mean, "changed": got.changed, "read": got.bytes_per_token / exact.bytes_per_token,
        "faster": statistics.median(faster), "between": [min(faster), max(faster)], "speed": got.tokens_per_second,
    }  # fmt: skip


def table(found: Mapping[str, Mapping[str, Any]], given: argparse.Namespace) -> str:
    """The page."""
    tokens = given.windows * (given.ctx_size - 1 - given.ctx_size // 2)
    lines = [
        "# Calibrated budgets on text that the calibration did not see", "",
        f"`python -m tools.check_budget {given.model.name} --corpus CORPUS`, {date.today()}, "
        f"{platform.machine()} with {len(os.sched_getaffinity(0))} cores. The demo model widened to n_embd "
        f"{given.n_embd}, n_ff_exp {given.n_ff_exp} in {given.type}, twin in {given.twin_type}; {given.resident:.0%} "
        "of the experts' bytes in memory, the others read directly from disk. `gmoe calibrate` saw "
        f"{given.chunks} windows of {given.ctx_size} tokens from the first half of each of the test splits of "
        f"{', '.join(SEEN)}; it chooses the fastest setting of which {MARGIN:g} times the upper end of the 95 % "
        f"interval on its worst text is within the budget. The table is of {given.windows} windows ({tokens} scored "
        "tokens) of the second halves, and of kinds of text that the calibration never met.", "",
        "A budget holds where the mean KLD, in nats a token, is at most the budget; ± are standard errors. Read: "
        "bytes, as a part of what exact reads. Speed: a ratio to exact, the median of the windows, which all settings "
        "run in turn; in brackets the least and the greatest.", "",
        "| text | quality | budget | chosen | KLD | holds | same top | served otherwise | read | speed |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    held: dict[str, list[bool]] = {"kinds that were calibrated on": [], "other kinds": []}
    lossy: list[dict[str, Any]] = []
    for domain, rows in found.items():
        for quality, got in rows.items():
            holds = got["kld"] <= BUDGETS[quality]
            if got["said"] != "exact":
                held["kinds that were calibrated on" if domain in SEEN else "other kinds"].append(holds)
                lossy.append({**got, "sure": got["kld"] + SURE * got["error"] <= BUDGETS[quality]})
            least, most = got["between"]
            lines.append(
                f"| {domain}{'' if domain in SEEN else ' (other)'} | {quality} | {BUDGETS[quality]:g} | "
                f"{got['said']} | "
                f"{got['kld']:.5f} ± {got['error']:.5f} | {'yes' if holds else '**no**'} | {got['top']:.1%} | "
                f"{got['changed']:.1%} | {got['read']:.0%} | {got['faster']:.2f} ({least:.2f} to {most:.2f}) |"
            )
    counts = ", ".join(f"{sum(some)} of {len(some)} hold on {kind}" for kind, some in held.items() if some)
    sure, faster = sum(row["sure"] for row in lossy), sum(row["faster"] > 1 for row in lossy)
    lines += [
        "",
        f"Of the lossy choices {counts}; {sure} of {len(lossy)} do with {SURE} standard errors added to the KLD. ",
    ]
    lines[-1] += f"{faster} of {len(lossy)} were faster than exact."
    return "\n".join([*lines, ""])


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Measure what is not yet measured, for at most `seconds`."""
    given.work.mkdir(parents=True, exist_ok=True)
    model, twins, log = given.work / "model.gguf", given.work / "twin.gguf", given.work / "results.json"
    if not model.exists():
        widen(given.model, model, given.n_embd, given.n_ff_exp, given.type)
    if not twins.exists():
        twin(model, twins, given.twin_type)
    began, memory = time.monotonic(), memory_for(model, given.resident)
    if not log.exists():
        calibrate(model, twins, memory, given)
        log.write_text("{}")
    found: dict[str, Any] = json.loads(log.read_text())
    for domain in (*SEEN, *OTHERS):
        if domain in found or (given.seconds and time.monotonic() - began > given.seconds):
            continue
        found[domain] = unseen(model, memory, domain, given)
        print(domain, json.dumps(found[domain]), flush=True)
        log.write_text(json.dumps(found, indent=1))
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("check_budget"))
    parser.add_argument("--n-embd", type=int, default=1024)
    parser.add_argument("--n-ff-exp", type=int, default=1024)
    parser.add_argument("--type", default="Q4_K_M")
    parser.add_argument("--twin-type", default="Q2_K")
    parser.add_argument("--resident", type=float, default=0.5)
    parser.add_argument("-c", "--ctx-size", type=int, default=128)
    parser.add_argument("--chunks", type=int, default=3, help="windows of each text to calibrate on")
    parser.add_argument("--windows", type=int, default=6, help="of each unseen text")
    parser.add_argument("--seconds", type=float, default=0, help="begin no text after so many; 0: all")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/budgets.md"))
    given = parser.parse_args()
    found = run(given)
    if found:
        given.out.write_text(table(found, given))


if __name__ == "__main__":
    main()
