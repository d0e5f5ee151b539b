"""Whether calibrated budgets hold on unseen text: `python -m tools.check_budget MODEL.gguf --corpus FOLDER`.

MODEL is the demo model in F16; it is widened, `gmoe calibrate` runs on the beginnings of a few held-out texts, and each
--quality then answers to texts that it never saw: later parts of the same kind, and other kinds. Writes a table.
"""

import argparse
import lzma
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import gmoe
from gmoe.experts.calibration import QUALITIES
from gmoe.passes.compare import Measured, base_of, measure
from gmoe.passes.perplexity import windows
from gmoe.passes.twin import twin
from tools.widen import widen

SEEN = ("stories", "docs", "python")
OTHERS = ("dialogue", "french", "german", "maths", "structured", "instruct")


def text(corpus: Path, domain: str, half: int) -> str:
    """One half of a domain's test split."""
    whole = lzma.open(corpus / f"{domain}.test.txt.xz", "rt", encoding="utf-8").read()
    middle = len(whole) // 2
    return whole[middle:] if half else whole[:middle]


def calibrate(model: Path, twins: Path, given: argparse.Namespace) -> None:
    """Run the command on the first halves of SEEN, as much of each."""
    size = 6 * given.ctx_size * (given.chunks // len(SEEN) + 1)
    source = given.work / "calibration.txt"
    source.write_text("\n".join(text(given.corpus, domain, 0)[:size] for domain in SEEN))
    command = [sys.executable, "-c", "from gmoe.cli.main import cli; cli()", "calibrate", str(model), "-f", str(source)]
    command += ["--host-memory", memory(model, given.resident), "--twin", str(twins)]
    subprocess.run([*command, "-c", str(given.ctx_size), "--chunks", str(given.chunks)], check=True)


def memory(model: Path, resident: float) -> str:
    """Bytes that hold this part of the experts."""
    with gmoe.LLM.load(model, gmoe.RuntimeOptions(context=32, max_sequences=1)) as llm:
        experts = sum(group.experts * group.slot_bytes for group in llm.budget.groups)
        return str(llm.budget.fixed + int(resident * experts))


def unseen(model: Path, given: argparse.Namespace) -> Iterator[tuple[str, str, Measured, list[str]]]:
    """A text's name, a quality, what it cost on that text, and what the run had to say."""
    tokenizer = gmoe.Tokenizer.from_file(model)
    budget = memory(model, given.resident)
    plain = {"context": given.ctx_size, "max_sequences": 1}
    for domain in (*SEEN, *OTHERS):
        ids = tokenizer.encode(text(given.corpus, domain, 1), add_special=False, parse_special=False)
        cut = windows(ids, given.ctx_size, None, given.windows + 1)
        with gmoe.LLM.load(model, gmoe.RuntimeOptions(**plain)) as llm:
            base = base_of(llm, cut[1:])
        for quality in QUALITIES:
            options = gmoe.RuntimeOptions(host_memory=budget, quality=quality, **plain)
            with gmoe.LLM.load(model, options) as llm:
                setting = llm.cache.setting
                said = [f"{k} {v}" for k, v in setting.options.items() if k != "twin"] if setting else ["exact"]
                yield domain, quality, measure(llm, cut[1:], base, cut[0]), said


def table(rows: Iterator[tuple[str, str, Measured, list[str]]], given: argparse.Namespace) -> str:
    """The page."""
    lines = [
        "# Calibrated budgets on text that the calibration did not see", "",
        f"`python -m tools.check_budget {given.model.name} --corpus CORPUS`, {date.today()}, {platform.machine()} with "
        f"{len(os.sched_getaffinity(0))} cores. The demo model widened to n_embd {given.n_embd}, n_ff_exp "
        f"{given.n_ff_exp} in {given.type}, twin in {given.twin_type}; {given.resident:.0%} of the experts in memory. "
        f"`gmoe calibrate` saw {given.chunks} windows of {given.ctx_size} tokens from the first halves of the test "
        f"splits of {', '.join(SEEN)}; the table is of {given.windows} windows of the second halves. KLD in nats a "
        "token with its standard error; a budget holds where the mean is at most the budget.", "",
        "| text | kind | quality | budget | chosen | KLD | same top | holds |", "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    held = count = 0
    for domain, quality, got, said in rows:
        kld, holds = got.found.kld, got.found.kld.mean <= QUALITIES[quality]
        held, count = held + holds, count + 1
        kind = "seen kind" if domain in SEEN else "other kind"
        lines.append(
            f"| {domain} | {kind} | {quality} | {QUALITIES[quality]:g} | {', '.join(said)} | {max(0.0, kld.mean):.5f} "
            f"± {kld.error:.5f} | {got.found.same_top.mean:.1%} | {'yes' if holds else '**no**'} |"
        )
        print(lines[-1], flush=True)
    return "\n".join([*lines, "", f"{held} of {count} hold.", ""])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("check_budget"))
    parser.add_argument("--n-embd", type=int, default=512)
    parser.add_argument("--n-ff-exp", type=int, default=512)
    parser.add_argument("--type", default="Q4_K_M")
    parser.add_argument("--twin-type", default="Q2_K")
    parser.add_argument("--resident", type=float, default=0.5)
    parser.add_argument("-c", "--ctx-size", type=int, default=128)
    parser.add_argument("--chunks", type=int, default=12, help="windows to calibrate on")
    parser.add_argument("--windows", type=int, default=8, help="of each unseen text")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/budgets.md"))
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    model, twins = given.work / "model.gguf", given.work / "twin.gguf"
    if not model.exists():
        widen(given.model, model, given.n_embd, given.n_ff_exp, given.type)
        twin(model, twins, given.twin_type)
    calibrate(model, twins, given)
    given.out.write_text(table(unseen(model, given), given))


if __name__ == "__main__":
    main()
