"""`gmoe imatrix`: what a text says about the columns of the experts, for `gmoe twin` and `gmoe quantize`."""

from pathlib import Path

import click

from gmoe.cli.options import window_flags
from gmoe.cli.output import require_other, say_notes
from gmoe.library.find import model_file
from gmoe.options import RuntimeOptions
from gmoe.passes.imatrix import Importance
from gmoe.passes.perplexity import windows


@click.command()
@click.argument("model")
@click.option("-f", "--file", "text", type=click.Path(path_type=Path), required=True, help="The text.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Default: MODEL.imatrix.gguf beside MODEL.")
@window_flags(512, 0)
def imatrix(model: str, text: Path, output: Path | None, ctx_size: int, chunks: int) -> None:
    """Run MODEL over a text and keep how strongly it drives each column of the experts, in llama-imatrix's format."""
    path = model_file(model)
    target = output or path.with_name(f"{path.name.removesuffix('.gguf')}.imatrix.gguf")
    require_other(path, target, text)
    from gmoe.llm import LLM

    with LLM.load(path, RuntimeOptions(device="cpu", context=ctx_size, max_sequences=1)) as llm:
        say_notes(llm.notices)
        ids = llm.tokenizer.encode(text.read_text("utf-8", "replace"), add_special=False, parse_special=False)
        cut = windows(ids, ctx_size, None, chunks)
        found = Importance(llm.layout)
        for block in llm.model.ffn:
            if hasattr(block, "dispatch"):
                block.dispatch = found.before(block.dispatch)
        for window in cut:
            llm.logits(window)
        found.save(llm.file, target, text.name, len(cut), ctx_size)
    click.echo(f"{target}: {len(cut)} windows; {found.unseen} experts were never chosen", err=True)
