"""`gmoe prune`: a model with fewer experts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from gmoe.cli.options import window_flags
from gmoe.cli.output import require_other, say_notes
from gmoe.cli.progress import waiting
from gmoe.experts.fingerprint import header
from gmoe.experts.trace_csv import any_trace
from gmoe.gguf.file import GGUFFile
from gmoe.library.find import model_file
from gmoe.options import RuntimeOptions

HELD_OUT = 4  # every so many windows one, from the end of the text, is not shown to the choice
SCORES = ("reap", "count", "soft", "proficiency", "random")


@click.command()
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--keep", type=click.IntRange(min=1), required=True, metavar="N", help="Experts left in every layer.")
@click.option("--score", type=click.Choice(SCORES), default="reap", show_default=True, help="Which experts stay.")
@click.option("-f", "--file", "text", type=click.Path(path_type=Path), help="The text that tells it.")
@click.option("--trace", type=click.Path(path_type=Path), help="A recorded trace that tells it, for count.")
@click.option("--search", type=click.Choice(["eep"]), help="Go on from there by a search, on the same text.")
@click.option("--iterations", type=click.IntRange(min=0), default=100, show_default=True, help="Choices it may try.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of random, and of the search.")
@window_flags(128, 16)
def prune(
    source: str, target: Path, keep: int, score: str, text: Path | None, trace: Path | None, search: str | None,
    iterations: int, seed: int, ctx_size: int, chunks: int,
) -> None:  # fmt: skip
    """Write the model IN to OUT with N experts in every layer, as a stock file.

    Experts stay by REAP's score, or by others; their bytes are copied. The last quarter of the text is held out, and
    tells the perplexity before and after.
    """
    told = text is not None or score == "random" or (trace is not None and score == "count")
    if not told or (search and text is None):
        raise click.UsageError(f"the text is missing: --{'search eep' if search else 'score ' + score} needs -f FILE")
    if trace is not None and score != "count":
        raise click.UsageError("--trace tells how often experts were chosen: it is for --score count")
    if text is not None and chunks == 1:
        raise click.UsageError("--chunks 1 leaves no window to hold out; it must be 0, or 2 at least")
    path = model_file(source)
    require_other(path, target, text, trace)
    from gmoe.passes.prune import Pruning

    with GGUFFile.open(path) as file:
        Pruning(file, keep)  # refused before anything is loaded
    from gmoe.llm import LLM
    from gmoe.passes.perplexity import windows_of

    options = RuntimeOptions(device="cpu", context=ctx_size, max_sequences=1)
    with LLM.load(path, options) as llm:
        say_notes(llm.notices)
        cut = windows_of(llm.tokenizer, text, ctx_size, chunks) if text else []
        held = len(cut) - max(1, len(cut) // HELD_OUT) if cut else 0
        pruning = Pruning(llm.file, keep)
        kept = _choice(llm, pruning, cut[:held], score, trace, search, iterations, seed)
        _warn(llm, pruning, score, search)
        with waiting("writing") as say:
            pruning.write(target, kept, lambda info: say(f"writing {info.name}"))
        before = _perplexity(llm, cut[held:])
    sizes = [sum(part.stat().st_size for part in parts) / 2**20 for parts in (llm.file.parts, [target])]
    click.echo(
        f"{target}: {pruning.n_expert} -> {keep} experts a layer, {sizes[0]:.1f} MiB -> {sizes[1]:.1f} MiB", err=True
    )
    if cut:
        with LLM.load(target, options) as llm:
            after = _perplexity(llm, cut[held:])
        click.echo(f"perplexity of {len(cut) - held} held-out windows: {before:.4f} -> {after:.4f}")


def _choice(
    llm: Any,
    pruning: Any,
    cut: Sequence[Sequence[int]],
    score: str,
    trace: Path | None,
    search: str | None,
    iterations: int,
    seed: int,
) -> Any:
    """The experts that stay, by score, and by search from there on."""
    from gmoe.passes import eep, saliency
    from gmoe.passes.masked import masked
    from gmoe.passes.perplexity import mean_nll, ppl

    found = saliency.Saliency(pruning.layers, pruning.n_expert)
    ranked: Any
    if score == "random":
        rng = np.random.default_rng(seed)
        ranked = {layer: rng.random(pruning.n_expert) for layer in pruning.layers}
    else:
        if trace is not None:
            mine = header(llm.file, llm.layout, llm.hparams.n_layer)
            found = saliency.Saliency.of_trace(any_trace(trace, mine), pruning.layers)
        else:
            with waiting("reading the text"), found.listening(llm.model, llm.layout, llm.dispatch.activations):
                for window in cut:
                    llm.logits(window)
        if found.unseen:
            click.echo(f"Note: {found.unseen} experts were never chosen", err=True)
        ranked = found.scores(score)
    kept = pruning.best(ranked)
    if not search:
        return kept

    def loss(choice: Any) -> float:
        with masked(llm.model, choice, pruning.used):
            return mean_nll(cut, llm.logits)

    with waiting("searching") as say:
        first = loss(kept)
        heard = saliency.NAMES if trace is None and score != "random" else ()
        starts = [kept, *(pruning.best(found.scores(name)) for name in heard)]
        best, least = eep.search(
            starts, loss, pruning.n_expert, pruning.groups, iterations, seed,
            lambda tried, least: say(f"searching: {tried} of {iterations}, {ppl(least):.4f}"),
        )  # fmt: skip
    told = f"perplexity of its text {ppl(first):.4f} ({score}) -> {ppl(least):.4f}"
    click.echo(f"eep: {iterations} choices tried, seed {seed}; {told}", err=True)
    return best


def _warn(llm: Any, pruning: Any, score: str, search: str | None) -> None:
    """What else is to be said of this choice."""
    from gmoe.kernels.ops import Score
    from gmoe.passes.masked import routed, router

    if score in ("count", "soft") and not search and 2 * pruning.keep <= pruning.n_expert:
        click.echo("Warning: counts alone collapse when half of the experts go; --score reap looks further", err=True)
    if pruning.used != llm.hparams.n_expert_used:
        click.echo(f"Note: a token uses {pruning.used} experts, not {llm.hparams.n_expert_used}", err=True)
    rules = [router(block).rule for block in routed(llm.model).values()]
    if pruning.keep < pruning.n_expert and any(r.score is Score.SOFTMAX and not r.renormalize for r in rules):
        click.echo(
            "Note: this model's router does not renormalize the chosen weights: without the other experts, those that "
            "stay get more weight",
            err=True,
        )


def _perplexity(llm: Any, cut: Sequence[Sequence[int]]) -> float:
    from gmoe.passes.perplexity import mean_nll, ppl

    return ppl(mean_nll(cut, llm.logits)) if cut else 0.0
