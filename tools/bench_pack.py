"""What packing gains: random experts read from both files, past the page cache, in turn.

python -m tools.bench_pack STOCK.gguf PACKED.gguf [--experts 64] [--rounds 5]
"""

import argparse
import random
import time
from pathlib import Path
from statistics import median

import numpy as np

from gmoe.experts.expert_id import ExpertId
from gmoe.experts.slots import PAGE, extents
from gmoe.experts.transfer import open_transfer
from gmoe.gguf.file import GGUFFile
from gmoe.gguf.hparams import Hparams
from gmoe.gguf.layout import ExpertLayout


def seconds(path: Path, ids: list[tuple[int, int]], together: int) -> tuple[float, int, int]:
    """To read these experts, so many asked for at a time; with the reads and bytes it took."""
    with GGUFFile.open(path) as file:
        hparams = Hparams.from_metadata(file.metadata, str(path))
        where = extents(ExpertLayout(file, hparams.n_layer, hparams.n_expert))
        wanted = [(ExpertId(*id), where[ExpertId(*id)]) for id in ids]
        largest = max(extent.nbytes for _, extent in wanted)
        raw = np.zeros(together * largest + PAGE, np.uint8)
        raw = raw[-raw.ctypes.data % PAGE :]
        transfer = open_transfer(file.parts, reader="direct")
        try:
            began = time.perf_counter()
            for at in range(0, len(wanted), together):
                flying = [
                    transfer.submit(id, n, extent, raw[n * largest : (n + 1) * largest], True)
                    for n, (id, extent) in enumerate(wanted[at : at + together])
                ]
                while flying:
                    arrived = transfer.wait(flying)
                    flying = [ticket for ticket in flying if ticket not in arrived]
            took = time.perf_counter() - began
        finally:
            transfer.close()
    reads = sum(len(extent.reads) for _, extent in wanted)
    return took, reads, sum(read.nbytes for _, extent in wanted for read in extent.reads)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs=2)
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args(arguments)
    with GGUFFile.open(given.files[0]) as file:
        hparams = Hparams.from_metadata(file.metadata, str(given.files[0]))
        layout = ExpertLayout(file, hparams.n_layer, hparams.n_expert)
        ids = [(layer, expert) for layer in layout.layers for expert in range(layout.n_expert)]
    for together in (1, 2, 4):
        found: list[list[tuple[float, int, int]]] = [[], []]
        for n in range(given.rounds):
            some = random.Random(n).sample(ids, min(given.experts, len(ids)))
            for which in (0, 1) if n % 2 else (1, 0):
                found[which].append(seconds(given.files[which], some, together))
        for path, rows in zip(given.files, found, strict=True):
            took = median(row[0] for row in rows)
            print(
                f"{together} at a time  {path.name:24} {1e3 * took / given.experts:6.2f} ms an expert  "
                f"{rows[0][1] / given.experts:.1f} reads  {rows[0][2] / took / 1e6:6.0f} MB/s"
            )
        ratio = median(a[0] / b[0] for a, b in zip(*found, strict=True))
        print(f"{together} at a time  gain {ratio:.2f}x")


if __name__ == "__main__":
    main()
