"""Compiles the Triton kernels for cards that are not here: that they compile, and how much fast memory they take.

    python -m tools.compile_kernels                              # every format, tiles of 1, 16, 32 and 64 rows
    python -m tools.compile_kernels --formats Q4_K --cards 8.9 --tiles 64

Nothing runs, and no card is needed: Triton brings the assembler. Exit status 1 where something does not fit.
"""

import argparse
import sys
from typing import Any

from gmoe.kernels.formats import FORMATS

CARDS = {"8.0": 166912, "8.9": 101376, "9.0": 232448, "12.0": 101376}  # bytes that a program may take
TILES = (1, 16, 32, 64)
WIDTH, INNER = 2048, 768
LEFT_OUT = ("F64", "I8", "I16", "I32", "I64")
INTEGERS = ("T", "OUT", "row_bytes", "slot_bytes", "FF", "k", "gate_at", "up_at", "gate_row_bytes", "up_row_bytes")
INTEGERS += ("D", "at")
POINTERS = {"w": "*u8", "bank": "*u8", "signs": "*i32", "pairs": "*i32", "block_slot": "*i32", "ids": "*i32"}


def compiled(kernel: Any, constants: dict[str, Any], how: dict[str, Any], card: str) -> int:
    """Bytes of fast memory that a program takes; raises what Triton raises."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kinds: dict[str, str] = {}
    for name in kernel.arg_names:
        plain = "i32" if name in INTEGERS else POINTERS.get(name, "*fp32")
        kinds[name] = "constexpr" if name in constants else plain
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=kinds, constexprs=places)
    made = triton.compile(source, target=GPUTarget("cuda", int(card.replace(".", "")), 32), options=how)
    if not made.asm.get("cubin"):
        raise ValueError("no machine code came out")
    return int(made.metadata.shared)


def needs(name: str, m: int, card: str) -> dict[str, int]:
    """What each kernel takes for one format and tile."""
    from gmoe.kernels.triton import experts, matmul
    from gmoe.kernels.triton.row import row

    form, n = row(name), 8 if m == 1 else 32
    how = matmul.launch(m, CARDS[card], form)
    tiles = {"M": m, "N": n, "PRECISION": "tf32"}
    gate = {"GATE": form, "UP": form, "GATED": True, "GATE_BIAS": False, "UP_BIAS": False, "ACTIVATION": "swiglu"}
    unpack = {"K": WIDTH, "N": 16, "ROW": form}
    return {
        "dequantize": compiled(matmul._dequantize, unpack, {"enable_fp_fusion": False}, card) if m == 1 else 0,
        "matmul": compiled(matmul._matmul, {"K": WIDTH, "ROW": form, **tiles}, how, card),
        "gate_up": compiled(experts._gate_up, {"D": WIDTH, **gate, **tiles}, how, card),
        "down": compiled(experts._down, {"FF": INNER, "DOWN": form, "BIAS": False, **tiles}, how, card),
    }


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    every = [name for name in FORMATS if name not in LEFT_OUT]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", nargs="+", default=every, choices=every, metavar="FORMAT")
    parser.add_argument("--cards", nargs="+", default=list(CARDS), choices=CARDS, help="compute capabilities")
    parser.add_argument("--tiles", nargs="+", type=int, default=list(TILES), choices=TILES)
    given = parser.parse_args(arguments)
    print(f"| format | tile | {' | '.join(given.cards)} |\n|---|---|{'---|' * len(given.cards)}")
    failed = 0
    for name in given.formats:
        for m in given.tiles:
            cells = []
            for card in given.cards:
                try:
                    most = max(needs(name, m, card).values())
                    fits = most <= CARDS[card]
                    cells.append(f"{most / 1024:.0f} KiB" + ("" if fits else ": too much"))
                except Exception as error:  # whatever Triton or its assembler says
                    fits = False
                    cells.append(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
                failed += not fits
            print(f"| {name} | {m} | {' | '.join(cells)} |", flush=True)
    if failed:
        sys.exit(f"{failed} of these would not run")


if __name__ == "__main__":
    main()
