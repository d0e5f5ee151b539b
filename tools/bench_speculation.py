"""What guesses bring: answers that are known, with and without them, in turn.

    python -m tools.bench_speculation MODEL.gguf --text gmoe/engine/engine.py -t 2 --rounds 3

Of a text the first tokens are the prompt, and what the model says is not what it chooses, so that any model will do:
"edited", the prompt again with a change about every 60th token; "new", what follows it in the text; "the same",
the prompt again. Each token has the forward pass and the row of logits that it would have had.
"""

import argparse
import random
import time
from collections.abc import Sequence as Ids
from pathlib import Path
from statistics import median

from gmoe.engine.sampling import SamplingParams
from gmoe.engine.sequence import Sequence
from gmoe.llm import LLM
from gmoe.options import RuntimeOptions

EDIT = 1 / 60


class Told:
    """In the place of a sampler: says what it was told."""

    def __init__(self, text: Ids[int]):
        self.text = text

    def sample(self, logits: object, context: Ids[int]) -> int:
        """The token of this place."""
        return self.text[len(context)]

    def logprobs(self, logits: object, token: int) -> None:
        """Nobody asks for them."""


def edited(ids: Ids[int], n_vocab: int, seed: int = 1) -> list[int]:
    """The ids, some of which give way to others or to nothing, or have others before them."""
    draw, found = random.Random(seed), list[int]()
    for id in ids:
        change = draw.random() < EDIT
        if change:
            found += [draw.randrange(n_vocab) for _ in range(draw.randrange(8))]
        if not change or draw.random() < 0.5:
            found.append(id)
    return found


def say(llm: LLM, prompt: Ids[int], answer: Ids[int]) -> tuple[float, Sequence]:
    """Tokens a second behind the first one, and the sequence."""
    seq = Sequence(list(prompt), SamplingParams(max_tokens=len(answer)), reuse_prefix=False)
    seq.sampler = Told([*prompt, *answer])  # type: ignore[assignment]
    times = [time.perf_counter() for _ in llm._loop.submit(seq)]
    if list(seq.generated) != list(answer):
        raise ValueError("the answer is another one")
    return (len(times) - 1) / (times[-1] - times[0]), seq


def main(arguments: list[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=600, help="of the prompt, and of what follows")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-t", "--threads", type=int, default=0)
    args = parser.parse_args(arguments)
    options = RuntimeOptions(device="cpu", threads=args.threads, max_sequences=1, context=3 * args.tokens)
    with LLM.load(args.model, options) as llm:
        ids = llm.tokenizer.encode(args.text.read_text())
        prompt, engine = ids[: args.tokens], llm._engine
        kinds = {"edited": edited(prompt, llm.model.n_vocab), "new": ids[len(prompt) :][: args.tokens]}
        print(f"| {args.model.stem}, an answer that is | tokens | tok/s | with guesses | ratio | guessed | right |")
        print("|---|---:|---:|---:|---:|---:|---:|")
        for kind, answer in {**kinds, "the same": prompt}.items():
            plain, ahead, seq = list[float](), list[float](), Sequence([0], SamplingParams())
            guesses = engine.speculation
            for _ in range(args.rounds):
                engine.speculation = None
                plain.append(say(llm, prompt, answer)[0])
                engine.speculation = guesses
                speed, seq = say(llm, prompt, answer)
                ahead.append(speed)
            before, now = median(plain), median(ahead)
            figures = f"{before:.2f} | {now:.2f} | {now / before:.2f} | {seq.n_drafted} | {seq.n_accepted}"
            print(f"| {kind} | {len(answer)} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
