"""`gmoe trace sensitivity`: how much each layer minds losing its lighter experts."""

from dataclasses import replace
from pathlib import Path

import click

from gmoe.cli.options import window_flags
from gmoe.cli.output import say_notes
from gmoe.experts import calibration
from gmoe.experts.fingerprint import fingerprint
from gmoe.gguf.file import GGUFFile
from gmoe.library.find import model_file
from gmoe.options import RuntimeOptions
from gmoe.passes.perplexity import windows
from gmoe.passes.sensitivity import DropTail, sensitivities


@click.command()
@click.argument("model")
@click.option("-f", "--file", "text", type=click.Path(path_type=Path), required=True, help="The text.")
@window_flags(128, 16)
def sensitivity(model: str, text: Path, ctx_size: int, chunks: int) -> None:
    """Measure each layer of MODEL on a text and keep it beside the model, for --route adaptive_k."""
    path = model_file(model)
    from gmoe.llm import LLM

    with LLM.load(path, RuntimeOptions(device="cpu", context=ctx_size, max_sequences=1)) as llm:
        say_notes(llm.notices)
        ids = llm.tokenizer.encode(text.read_text("utf-8", "replace"), add_special=False, parse_special=False)
        cut = windows(ids, ctx_size, None, chunks)
        llm.dispatch.route = policy = DropTail()
        found = [0.0] * llm.hparams.n_layer
        for layer, value in sensitivities(policy, llm.logits, list(llm.layout.layers), llm.hparams.n_layer, cut):
            found[layer] = value
            click.echo(f"layer {layer:3}  {value:.4f}")
    with GGUFFile.open(path) as file:
        known = calibration.Calibration(fingerprint(file))
        if calibration.path_of(file).exists():
            known = calibration.load(file)
        click.echo(f"{calibration.save(file, replace(known, sensitivity=found))}", err=True)
