"""What the store costs where everything is in memory: `python -m tools.bench_store MODEL.gguf`.

The same tokens are decoded one at a time, in turn: by kernels called with the addresses of the map and nothing else, by
the dispatch over the map, and by the dispatch out of slots that hold every expert.
"""

import argparse
import random
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from gmoe.kernels.ops import expert_mlp
from torch import Tensor

from gmoe.engine.sampling import SamplingParams
from gmoe.engine.scheduler import Turn
from gmoe.engine.sequence import Sequence as Tokens
from gmoe.experts.dispatch import ExpertDispatch
from gmoe.experts.evict.lru import Policy as Lru
from gmoe.experts.expert import ExpertId, Routing
from gmoe.experts.slots import extents, groups
from gmoe.experts.store import ExpertStore
from gmoe.experts.transfer import open_transfer
from gmoe.llm import LLM
from gmoe.options import RuntimeOptions

Run = Callable[[int, Tensor, Routing, str], Tensor]


def bare(llm: LLM) -> Run:
    """No store: the kernels and the map."""
    tables = {layer: llm.store.table(layer) for layer in llm.layout.layers}

    def run(layer: int, x: Tensor, routing: Routing, activation: str = "swiglu") -> Tensor:
        return expert_mlp(x, routing.topk_ids, routing.topk_weights, tables[layer], activation, "q8")

    return run


def slotted(llm: LLM) -> ExpertDispatch:
    """A store whose slots hold every expert already."""
    store, where = ExpertStore(llm.layout), extents(llm.layout)
    alike = groups(llm.layout, where)
    counts = [group.experts for group in alike]
    store.offload(alike, counts, where, Lru, open_transfer(llm.file.parts, reader="direct"))
    for id in where:
        ticket = store.fetch(ExpertId(*id), ())
        assert ticket is not None
        store.wait([ticket])
    return ExpertDispatch(store, "q8")


def main() -> None:
    """Print medians and ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=16, help="a turn")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    choose = random.Random(1)
    with LLM.load(args.model, RuntimeOptions(device="cpu", context=512, max_sequences=1, host_memory="100%")) as llm:
        ids = [choose.randrange(llm.model.n_vocab) for _ in range(args.tokens)]
        ways: dict[str, Any] = {"kernels alone": bare(llm), "store, map": llm.dispatch, "store, slots": slotted(llm)}
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(args.rounds + 1):
            for name, way in ways.items():
                for ffn in llm.model.ffn:
                    if hasattr(ffn, "dispatch"):
                        ffn.dispatch = way
                times[name].append(decode(llm, ids))
        first = median(times["kernels alone"][1:])
        print(f"{args.model.name}: {args.tokens} tokens, {args.rounds} rounds in turn, medians")
        for name, seconds in times.items():
            middle = median(seconds[1:])  # the first round brings the file into memory
            print(f"{name:14} {1000 * middle / len(ids):7.2f} ms a token  {middle / first - 1:+.1%}")
        ways["store, slots"].store.close()


def decode(llm: LLM, ids: list[int]) -> float:
    """Seconds to decode a fresh sequence token by token."""
    engine, seq = llm._engine, Tokens([], SamplingParams())
    began = time.perf_counter()
    for id in ids:
        seq.ids.append(id)
        engine.scheduler.make_room(seq, seq.n_cached + 1, keep=[])
        engine.runner.forward([Turn(seq, 1)], [0])
        seq.n_cached += 1
    seconds = time.perf_counter() - began
    engine.scheduler.blocks.release(seq)
    return seconds


if __name__ == "__main__":
    main()
