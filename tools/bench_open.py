"""Seconds to open a GGUF with a large vocabulary: gmoe's reader beside gguf-py's, in one run."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import gguf
import numpy as np

from gmoe.gguf.file import GGUFFile


def write_large_header(path: Path, n_tokens: int, n_tensors: int) -> Path:
    """A file with as many tokens, merges, scores and token types as `n_tokens`, and small tensors."""
    writer = gguf.GGUFWriter(path, "qwen3moe")
    writer.add_token_list([f"token{n}" for n in range(n_tokens)])
    writer.add_token_merges([f"a{n} b{n}" for n in range(n_tokens)])
    writer.add_token_scores(np.zeros(n_tokens, dtype=np.float32).tolist())
    writer.add_token_types(np.ones(n_tokens, dtype=np.int32).tolist())
    for n in range(n_tensors):
        writer.add_tensor(f"blk.{n}.ffn_norm.weight", np.full(32, n, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def seconds(open_file: Callable[[], Any], repeats: int) -> float:
    """The best of `repeats` runs."""
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        opened = open_file()
        best = min(best, time.perf_counter() - begin)
        del opened
    return best


@click.command()
@click.option("--tokens", default=150_000, show_default=True, help="Tokens, and as many merges.")
@click.option("--tensors", default=1_000, show_default=True)
@click.option("--repeats", default=3, show_default=True, help="Runs of gmoe's reader; the best counts.")
def main(tokens: int, tensors: int, repeats: int) -> None:
    """Write a file with a large header to a temporary folder, and open it with both readers."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_large_header(Path(folder) / "large.gguf", tokens, tensors)
        click.echo(f"{tokens} tokens, {tokens} merges, {tensors} tensors, {path.stat().st_size / 1e6:.1f} MB")
        click.echo(f"gmoe.gguf.file.GGUFFile  {seconds(lambda: GGUFFile.open(path), repeats):7.3f} s")
        click.echo(f"gguf.GGUFReader          {seconds(lambda: gguf.GGUFReader(path), 1):7.3f} s")


if __name__ == "__main__":
    main()
