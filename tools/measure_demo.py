"""Measure a demo model: `python -m tools.measure_demo bits|trace|habits ...`; each prints its table in Markdown."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray

from gmoe import LLM, Tokenizer
from gmoe.experts.trace import Trace
from tools.demo import bits, gates, habits
from tools.demo.corpus import DOMAINS
from tools.demo.export import read_model

Encode = Callable[[str], list[int]]


def encoder(tokenizer: Tokenizer) -> Encode:
    """Text with control tokens in it -> ids."""
    return lambda text: tokenizer.encode(text, add_special=False, parse_special=True)


def token_lengths(tokenizer: Tokenizer, n_vocab: int) -> NDArray[np.int64]:
    """Bytes that each token stands for, [n_vocab]; 0 for the control tokens."""
    lengths = np.zeros(n_vocab, np.int64)
    lengths[: tokenizer.n_vocab] = [len(tokenizer.token_bytes(i)) for i in range(tokenizer.n_vocab)]
    return lengths


def measure_bits(model_path: Path, corpus: Path, tokens: int | None, ngram_tokens: int) -> str:
    """The table of bits per byte."""
    tokenizer, model = Tokenizer.from_file(model_path), read_model(model_path)
    encode = encoder(tokenizer)
    lengths = token_lengths(tokenizer, model.shape.n_vocab)
    ngram = bits.train_ngram(encode, corpus, ngram_tokens, model.shape.n_vocab)
    lines = [
        f"| test split | tokens | {model_path.name} | perplexity | 5-gram | xz -9e | below xz |",
        "|---|---|---|---|---|---|---|",
    ]
    for domain in DOMAINS:
        text = bits.encoded(encode, corpus, domain, "test", None)
        parts = bits.stretches(text, tokens)
        of_model = sum((bits.model_bits(model, part, lengths) for part in parts), bits.Measured())
        of_ngram = sum((bits.ngram_bits(ngram, part, lengths) for part in parts), bits.Measured()).bits_per_byte
        of_xz = bits.xz_bits(corpus, domain)
        lines.append(
            f"| {domain} | {of_model.tokens:,} of {len(text):,}"
            f" | {of_model.bits_per_byte:.3f} | {of_model.perplexity:.1f} | {of_ngram:.3f}"
            f" | {of_xz:.3f} | {'yes' if of_model.bits_per_byte < of_xz else 'no'} |"
        )
    return "\n".join(lines)


def record(model_path: Path, corpus: Path, rounds: int, window: int, target: Path) -> str:
    """One request a domain and round: the beginning of a test document, or of some short ones, read token by token."""
    with LLM.load(model_path) as llm:
        encode = encoder(llm.tokenizer)
        texts = {domain: bits.encoded(encode, corpus, domain, "test", None) for domain in DOMAINS}
        end = encode("<|endoftext|>")[0]
        recorder, tasks = llm.record(), []
        for number in range(rounds):
            for domain, text in texts.items():
                starts = np.concatenate(([0], np.flatnonzero(text == end) + 1))
                start = int(starts[len(starts) * number // rounds])
                llm.read(text[start : start + window].tolist(), 16)
                tasks.append(domain)
        trace = recorder.trace()
    trace = replace(trace, header=replace(trace.header, tasks=tuple(tasks)))
    trace.save(target)
    return f"{target}: {len(tasks)} requests, {len(trace)} rows, {target.stat().st_size / 1e6:.2f} MB"


def measure_habits(trace: Trace, model_path: Path, corpus: Path, pictures: Path | None) -> str:
    """The table of what the papers observed."""
    requests, h = habits.Requests.of(trace), trace.header
    rng = np.random.default_rng(0)
    alone = habits.evenness(requests.matrices).mean(0)
    by_task = habits.evenness(np.stack(list(requests.by_task().values()))).mean(0)
    together = habits.evenness(requests.matrices.sum(0))
    told, noise = habits.domain_information(requests, rng)
    kept = habits.kept(requests)
    chance = requests.ids[0].shape[2] / h.n_expert
    lines = [
        f"{len(requests.tasks)} requests, {sum(map(len, requests.ids)):,} tokens, {h.n_layer} layers,"
        f" {requests.ids[0].shape[2]} of {h.n_expert} experts.\n",
        "| layer | evenness of use: a request | a domain | all | bits a choice tells of its domain (shuffled)"
        f" | kept from the token before (chance {chance:.1%}) |",
        "|---|---|---|---|---|---|",
    ]
    for n in range(h.n_layer):
        lines.append(
            f"| {n} | {alone[n]:.3f} | {by_task[n]:.3f} | {together[n]:.3f} | {told[n]:.3f} ({noise[n]:.3f})"
            f" | {kept[n]:.1%} |"
        )
    gaps = habits.reuse_distances(requests)
    raw, centred = habits.similarities(requests)
    model = read_model(model_path)
    encode = encoder(Tokenizer.from_file(model_path))
    windows = [bits.encoded(encode, corpus, domain, "test", 256) for domain in DOMAINS]
    facts: list[tuple[str, str]] = [
        ("reuse distance, tokens: median, 90 %", f"{np.median(gaps):.0f}, {np.quantile(gaps, 0.9):.0f}"),
        ("... shares within 1, 2, 4, 8 tokens", ", ".join(f"{(gaps <= n).mean():.0%}" for n in (1, 2, 4, 8))),
    ]
    for name, share in habits.next_layer(requests, h.n_expert).items():
        facts.append((f"experts of the next layer named by: {name}", f"{share:.1%}"))
    for distance, (share, first) in gates.look_ahead(model, windows).items():
        facts.append((f"... by its gate, {distance} layer(s) earlier (first expert)", f"{share:.1%} ({first:.1%})"))
    for name, cosines in (("as they are", raw), ("less their mean", centred)):
        within, between = habits.within_between(cosines, requests.tasks)
        facts.append(
            (f"cosine of two requests' matrices {name}: one domain, two domains", f"{within:.3f}, {between:.3f}")
        )
    measured, expected = habits.buddies(requests, h.n_expert)
    facts += [
        ("correlation of an expert number's load, layer and next layer", f"{habits.layer_correlation(requests):.3f}"),
        (
            "share of an expert's company taken by its nearest three (by popularity alone)",
            f"{measured:.1%} ({expected:.1%})",
        ),
        ("correlation of gate weight and length of the output", f"{gates.gate_against_output(model, windows):.3f}"),
        (
            "mean weight of the first, second, ... expert",
            ", ".join(f"{w:.2f}" for w in gates.shares_by_rank(model, windows)),
        ),
    ]
    lines += ["\n| | |", "|---|---|", *(f"| {what} | {value} |" for what, value in facts)]
    if pictures is not None:
        plot(requests, gaps, centred, pictures)
    return "\n".join(lines)


def plot(requests: habits.Requests, gaps: NDArray[np.int64], cosines: NDArray[np.float64], folder: Path) -> None:
    """demo-experts.png (who serves which domain), demo-similarity.png and demo-reuse.png."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    by_task = requests.by_task()
    n_layer, n_expert = requests.matrices.shape[1:]
    figure, many = pyplot.subplots(n_layer, 1, figsize=(8, 1.7 * n_layer), sharex=True)
    for layer, axes in enumerate(many):
        axes.imshow([counts[layer] / counts[layer].sum() for counts in by_task.values()], aspect="auto", vmin=0)
        axes.set_yticks(range(len(by_task)), by_task, fontsize=6)
        axes.set_ylabel(f"layer {layer}")
    many[-1].set_xlabel("expert")
    figure.savefig(folder / "demo-experts.png", dpi=80, bbox_inches="tight")
    order = np.argsort([list(by_task).index(task) for task in requests.tasks], kind="stable")
    figure, axes = pyplot.subplots(figsize=(6, 5))
    image = axes.imshow(cosines[np.ix_(order, order)], vmin=-1, vmax=1, cmap="RdBu_r")
    each = len(order) / len(by_task)
    axes.set_yticks(each * (np.arange(len(by_task)) + 0.5) - 0.5, by_task)
    axes.set_xticks(each * (np.arange(len(by_task)) + 0.5) - 0.5, by_task, rotation=90)
    axes.set_title("requests' activation matrices less their mean: cosine", fontsize=9)
    figure.colorbar(image)
    figure.savefig(folder / "demo-similarity.png", dpi=80, bbox_inches="tight")
    figure, axes = pyplot.subplots(figsize=(6, 3))
    axes.hist(np.minimum(gaps, 64), bins=np.arange(1, 66), density=True)
    axes.set(xlabel="tokens since the expert last served (64: or more)", ylabel="share of choices")
    figure.savefig(folder / "demo-reuse.png", dpi=80, bbox_inches="tight")
    pyplot.close("all")


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in (("bits", "bits per byte"), ("trace", "record the test splits"), ("habits", "the experts")):
        command = commands.add_parser(name, help=what)
        command.add_argument("model", type=Path)
        command.add_argument("--corpus", type=Path, default=Path(__file__).parents[2] / "shared" / "corpus")
        if name == "bits":
            command.add_argument(
                "--tokens", type=int, help="of each split, in 16 stretches; without it the whole split"
            )
            command.add_argument("--ngram-tokens", type=int, default=4_000_000, help="that the 5-gram learns from")
        else:
            command.add_argument("trace", type=Path)
        if name == "trace":
            command.add_argument("--rounds", type=int, default=4, help="requests of each domain")
            command.add_argument("--window", type=int, default=256, help="tokens of a request")
        if name == "habits":
            command.add_argument("--pictures", type=Path, help="folder")
    given = parser.parse_args(arguments)
    if given.command == "bits":
        print(measure_bits(given.model, given.corpus, given.tokens, given.ngram_tokens))
    elif given.command == "trace":
        print(record(given.model, given.corpus, given.rounds, given.window, given.trace))
    else:
        print(measure_habits(Trace.load(given.trace), given.model, given.corpus, given.pictures))


if __name__ == "__main__":
    main()
