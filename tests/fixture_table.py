"""The shared conformance fixtures against gmoe, a row a file (`python -m tests.fixture_table` prints all)."""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gmoe.engine.sampling import SamplingParams
from gmoe.llm import LLM
from gmoe.options import RuntimeOptions

FIXTURES = Path(__file__).parents[2] / "shared" / "fixtures"
EXACT = RuntimeOptions(activations="float", kv_type="f32", context=256, max_sequences=1)
DEFAULT = RuntimeOptions(context=256, max_sequences=1)
PROMPTS = ("p0", "p1", "p2")
SMALL_GAP = 0.02


@dataclass(frozen=True)
class Row:
    """What one file shows; errors are over all prompts and positions."""

    name: str
    max_abs: float  # against the exact answer, activations="float"
    max_abs_hf: float | None  # against transformers, where recorded
    routes: tuple[int, int]  # (token, layer) choices equal to the recorded ones, of how many
    greedy: tuple[int, int]  # greedy tokens equal, of those before the first small gap
    rms: float  # default kernels: rms of the error / std of the logits
    argmax: float  # default kernels: share of positions with the same best token
    tolerance: float

    def line(self) -> str:
        """One line of Markdown."""
        hf = "" if self.max_abs_hf is None else f"{self.max_abs_hf:.1e}"
        return (
            f"| {self.name} | {self.max_abs:.1e} | {hf} | {self.tolerance:.0e} | {self.routes[0]}/{self.routes[1]} "
            f"| {self.greedy[0]}/{self.greedy[1]} | {100 * self.rms:.2f} % | {100 * self.argmax:.1f} % |"
        )


def files() -> list[Path]:
    """The model files that have recorded outputs."""
    return sorted(p for p in (FIXTURES / "open").glob("*.gguf") if p.with_suffix(".npz").exists())


def tolerance(name: str) -> float:
    """The honest bound for `activations="float"` by the file's type."""
    if name.endswith("F32"):
        return 2e-4
    return {"BF16": 0.24, "F16": 0.018}.get(name.rsplit("-", 1)[1], 1e-3)


def measure(path: Path) -> Row:
    """Run one file twice: exactly, and with the default kernels."""
    record = np.load(path.with_suffix(".npz"))
    exact = "exact_" if "exact_p0_logits" in record else ""
    worst, worst_hf, routes, greedy = 0.0, None, [0, 0], [0, 0]
    with LLM.load(path, EXACT) as llm:
        for p in PROMPTS:
            chosen: dict[int, np.ndarray] = {}
            watch = lambda layer, routing, chosen=chosen: chosen.update({layer: routing.topk_ids.numpy()})  # noqa: E731
            llm.dispatch.observers.append(watch)
            logits = llm.logits(record[p + "_ids"].tolist())
            llm.dispatch.observers.remove(watch)
            worst = max(worst, float(np.abs(logits - record[f"{exact}{p}_logits"]).max()))
            if f"{p}_hf_logits" in record:
                worst_hf = max(worst_hf or 0.0, float(np.abs(logits - record[f"{p}_hf_logits"]).max()))
            for layer, ids in chosen.items():
                want = np.sort(record[f"{exact}{p}_topk_l{layer}"], -1)
                clear = record[f"{exact}{p}_margin_l{layer}"] > 1e-3
                routes[0] += int((np.sort(ids, -1) == want).all(-1)[clear].sum())
                routes[1] += int(clear.sum())
            same, of = _greedy(llm, record, exact + p)
            greedy[0] += same
            greedy[1] += of
    errors, std, equal = [], [], []
    with LLM.load(path, DEFAULT) as llm:
        for p in PROMPTS:
            logits, want = llm.logits(record[p + "_ids"].tolist()), record[f"{exact}{p}_logits"]
            errors.append(((logits - want) ** 2).ravel())
            std.append(want.ravel())
            equal.append(logits.argmax(-1) == want.argmax(-1))
    rms = float(np.sqrt(np.concatenate(errors).mean()) / np.concatenate(std).std())
    return Row(
        path.stem, worst, worst_hf, (routes[0], routes[1]), (greedy[0], greedy[1]), rms,
        float(np.concatenate(equal).mean()), tolerance(path.stem),
    )  # fmt: skip


def _greedy(llm: LLM, record: Any, key: str) -> tuple[int, int]:
    """Greedy tokens equal to the recorded ones, up to the first small gap."""
    want, gaps = record[key + "_greedy"], record[key + "_greedy_gap"]
    small = np.flatnonzero(gaps < SMALL_GAP)
    of = int(small[0]) if len(small) else len(want)
    ids = record[key.removeprefix("exact_") + "_ids"].tolist()
    greedy = SamplingParams(temperature=0, max_tokens=max(of, 1))
    got = [event.token_id for event in llm.run(ids, greedy, ignore_end=True)][:of]
    return int((np.array(got) == want[:of]).sum()), of


def tokenizer_failures(path: Path) -> list[str]:
    """Texts of `tokenizer_json` and `chat_json` whose ids or text differ."""
    record = np.load(path.with_suffix(".npz"))
    failures = []
    with LLM.load(path, replace(DEFAULT, threads=1)) as llm:
        for case in json.loads(str(record["tokenizer_json"])):
            if llm.tokenizer.encode(case["text"], add_special=True, parse_special=True) != case["ids"]:
                failures.append(f"ids of {case['text']!r}")
            if llm.tokenizer.encode(case["text"], add_special=False, parse_special=False) != case["ids_nospecial"]:
                failures.append(f"ids_nospecial of {case['text']!r}")
            if llm.tokenizer.decode(case["ids"]) != case["detok"]:
                failures.append(f"detok of {case['text']!r}")
        for case in json.loads(str(record["chat_json"])):
            text = llm.template.render(case["messages"], add_generation_prompt=case["add_generation_prompt"])
            if text != case["text"] or llm.tokenizer.encode(text, False, True) != case["ids"]:
                failures.append(f"chat {case['messages']!r}")
    return failures


def main() -> None:
    """Print the table."""
    print("| file | max abs, exact | against transformers | bound | routes | greedy | q8 rms/std | q8 argmax |")
    print("|---|---|---|---|---|---|---|---|")
    for path in files():
        print(measure(path).line(), flush=True)


if __name__ == "__main__":
    sys.exit(main())
