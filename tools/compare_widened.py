"""Does a widened model say the same? `python -m tools.compare_widened SMALL WIDE`: greedy text and routing of both."""

import argparse
from pathlib import Path

import numpy as np

from gmoe import LLM, RuntimeOptions, SamplingParams
from gmoe.experts.trace import Trace

PROMPT = "Once upon a time there was a"


def said(path: Path, tokens: int, activations: str) -> tuple[list[int], Trace, np.ndarray]:
    """Greedy ids after PROMPT, their routing, and the logits of the whole."""
    with LLM.load(path, RuntimeOptions(device="cpu", activations=activations, kv_type="f32")) as llm:
        prompt, recorder = llm.tokenizer.encode(PROMPT, add_special=False), llm.record()
        events = list(llm.generate(PROMPT, SamplingParams(max_tokens=tokens, temperature=0, repeat_penalty=1.0)))
        trace = recorder.trace()
        ids = [event.token_id for event in events if event.token_id is not None]
        return ids, trace, llm.logits([*prompt, *ids][: llm.context])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("small", type=Path)
    parser.add_argument("wide", type=Path)
    parser.add_argument("--tokens", type=int, default=500)
    parser.add_argument("--activations", choices=("q8", "float"), default="q8")
    given = parser.parse_args()
    (ids, trace, logits), (wide_ids, wide_trace, wide_logits) = (
        said(path, given.tokens, given.activations) for path in (given.small, given.wide)
    )
    n = next((n for n, (a, b) in enumerate(zip(ids, wide_ids, strict=False)) if a != b), min(len(ids), len(wide_ids)))
    print(f"greedy text: {n} of {len(ids)} tokens the same before the first that differs")
    rows = min(len(trace), len(wide_trace))
    same = (np.sort(trace.ids[:rows], 1) == np.sort(wide_trace.ids[:rows], 1)).all(1)
    print(f"routing: {same.sum():,} of {rows:,} choices of {trace.ids.shape[1]} experts the same")
    rows = min(len(logits), len(wide_logits), n)
    far = np.abs(logits[:rows] - wide_logits[:rows])
    print(f"logits of the tokens that agree: largest difference {far.max():.5f}, mean {far.mean():.6f}")


if __name__ == "__main__":
    main()
