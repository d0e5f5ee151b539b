"""Compiles the Triton kernels for cards that are not here: that they compile, and how much fast memory they take.

    python -m tools.compile_kernels                              # every format, tiles of 1, 16, 32 and 64 rows
    python -m tools.compile_kernels --parts weights --formats Q4_K --cards 8.9 --tiles 64
    python -m tools.compile_kernels --parts step                 # attention over every cache, norms and the rest

Nothing runs, and no card is needed: Triton brings the assembler. Exit status 1 where something does not fit.
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any

from gmoe.kernels.formats import FORMATS

CARDS = {"8.0": 166912, "8.9": 101376, "9.0": 232448, "12.0": 101376}  # bytes that a program may take
TILES = (1, 16, 32, 64)
WIDTH, INNER = 2048, 768
LEFT_OUT = ("F64", "I8", "I16", "I32", "I64")
INTEGERS = ("T", "OUT", "row_bytes", "slot_bytes", "FF", "k", "gate_at", "up_at", "gate_row_bytes", "up_row_bytes")
INTEGERS += ("D", "at", "blocks", *(f"{name}{n}" for name in ("OUT", "bytes") for n in range(3)))
DIVISIBLE = ("OUT", "row_bytes", "slot_bytes", "FF", "D", "gate_at", "up_at", "at", "gate_row_bytes", "up_row_bytes")
DIVISIBLE += tuple(f"{name}{n}" for name in ("OUT", "bytes") for n in range(3))  # by 16
POINTERS = {name: "*u8" for name in ("w", "w0", "w1", "w2", "bank")}
POINTERS |= {name: "*i32" for name in ("signs", "pairs", "slots", "ids")}
CACHES = {"f16": "*fp16", "bf16": "*bf16", "f32": "*fp32", "q8_0": "*i8"}
HEADS = ((8, 64, 64), (8, 128, 128), (8, 256, 256), (128, 576, 512), (5, 80, 80))  # a key head; elements of k, of v
RECURRENT = (
    (2, 64, 64),
    (3, 128, 128),
    (3, 128, 64),
    (3, 20, 12),
)  # inputs before a convolution's own; elements of k, of v
ROUTERS = (60, 128, 512, 1024)  # experts
STEPS = {"decode": (1, True), "decode of many": (32, True), "prompt": (512, False)}  # rows, each another sequence's
STEP_INTEGERS = ("T", "S", "H", "HKV", "HEADS", "per_head", "table_width", "size", "d", "n", "pairs", "row_stride")
STEP_INTEGERS += ("head_stride", "key_row", "key_head", "value_row", "value_head")
STEP_INTEGERS += ("q_row", "q_head", "k_row", "k_head")
STEP = {name: "i32" for name in STEP_INTEGERS} | {"k": "*fp32"}
STEP |= dict.fromkeys(("scale", "cap", "eps", "q_eps", "k_eps", "magnitude"), "fp32")
STEP |= {"positions": "*i64", "slots": "*i64", "tables": "*i32", "starts": "*i32"}


def compiled(
    kernel: Any, constants: dict[str, Any], how: dict[str, Any], card: str, given: dict[str, str] | None = None
) -> int:
    """Bytes of fast memory that a program takes, `given` the types of its arguments; raises what Triton raises."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kinds: dict[str, str] = {}
    for name in kernel.arg_names:
        plain = "i32" if name in INTEGERS else POINTERS.get(name, "*fp32")
        kinds[name] = "constexpr" if name in constants else (given or {}).get(name, plain)
    even = [
        n
        for n, name in enumerate(kernel.arg_names)
        if kinds[name][0] == "*" or (kinds[name] == "i32" and name in DIVISIBLE)
    ]
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    attributes = {(n,): [["tt.divisibility", 16]] for n in even}  # as almost every launch: wide loads and copies
    source = ASTSource(fn=kernel, signature=kinds, constexprs=places, attrs=attributes)
    made = triton.compile(source, target=GPUTarget("cuda", int(card.replace(".", "")), 32), options=how)
    if not made.asm.get("cubin"):
        raise ValueError("no machine code came out")
    return int(made.metadata.shared)


def needs(name: str, m: int, card: str) -> dict[str, int]:
    """What each kernel takes for one format and tile."""
    from gmoe.kernels.triton import experts, linears, matmul
    from gmoe.kernels.triton.row import row

    form = row(name)
    launch = matmul.launch(m, form)
    how, tiles = launch.options, {"M": m, "N": launch.n, "PRECISION": "tf32"}
    gate = {"GATE": form, "UP": form, "GATED": True, "GATE_BIAS": False, "UP_BIAS": False}
    unpack = {"K": WIDTH, "N": 16, "ROW": form}
    product = {"K": WIDTH, "ROW": form, **tiles}
    gate |= {"ACTIVATION": "swiglu", "MOST": 0.0, "D": WIDTH, "BY_ID": m == 1, **tiles}
    down = {"FF": INNER, "DOWN": form, "BIAS": False, "BY_ID": m == 1, **tiles}
    three = {f"{name}{n}": value for name, value in (("ROW", form), ("BIAS", True)) for n in range(3)}
    three |= {"K": WIDTH, "COUNT": 3, **tiles}
    return {
        "three at once": compiled(linears._linears, three, how, card) if m <= linears.FEW else 0,
        "dequantize": compiled(matmul._dequantize, unpack, {"enable_fp_fusion": False}, card) if m == 1 else 0,
        "matmul": compiled(matmul._matmul, product | {"PARTS": 1, "PERSISTENT": False}, how, card),
        "matmul in parts": compiled(matmul._matmul, product | {"PARTS": 4, "PERSISTENT": False}, how, card)
        if m == 1
        else 0,
        "matmul in turn": compiled(matmul._matmul, product | {"PARTS": 1, "PERSISTENT": True}, how, card)
        if m > 1
        else 0,
        "gate_up": compiled(experts._gate_up, gate | {"PERSISTENT": False}, how, card),
        "down": compiled(experts._down, down | {"PERSISTENT": False}, how, card),
        "gate_up in turn": compiled(experts._gate_up, gate | {"PERSISTENT": True}, how, card) if m > 1 else 0,
        "down in turn": compiled(experts._down, down | {"PERSISTENT": True}, how, card) if m > 1 else 0,
    }


def attention_needs(heads: tuple[int, int, int], cache: str, step: str, card: str) -> dict[str, int]:
    """What attention takes for so many heads a key head and elements of keys and values."""
    from gmoe.kernels.triton import attention

    (group, dk, dv), (rows, one), scaled = heads, STEPS[step], cache == "q8_0"
    if cache == "f32" and max(dk, dv) > 256 and CARDS[card] < attention.WIDE_FLOATS:
        return {"torch": 0}
    t, d = attention.tiles(group, max(dk, dv), rows, one, cache == "f32"), attention.widths(dk, dv)
    kinds = STEP | {"keys": CACHES[cache], "values": CACHES[cache]}
    kinds |= dict.fromkeys(("key_scales", "value_scales"), "*fp16" if scaled else CACHES[cache])
    same = {"SIGHT": 1, "SINKS": True, "SPLIT": t.split}
    tile = {
        "SEQUENCES": 0 if one else attention.SEQUENCES,
        "HEADS": t.heads,
        "M": t.rows,
        "N": t.keys,
        "SCALED": scaled,
        "CAPPED": False,
    }
    how = attention.FUSED | {"num_warps": t.num_warps, "num_stages": t.num_stages}
    attend = same | tile | d | {"EXACT": cache in ("f16", "bf16")}
    needs = {"attend": compiled(attention._attend, attend, how, card, kinds)}
    if t.split:
        merge = same | {"DV": dv, "WIDTH": d["WIDTH"], "AT_ONCE": attention.at_once(d["WIDTH"])}
        needs["merge"] = compiled(attention._merge, merge, attention.FUSED, card, STEP)
    return needs


def step_needs(heads: tuple[int, int, int], cache: str, card: str) -> dict[str, int]:
    """What norms, heads and storing take."""
    from gmoe.kernels.triton import step

    (_, dk, dv), kind = heads, CACHES[cache]
    kinds = STEP | {"key_cache": kind, "value_cache": kind, "key_scales": "*fp16", "value_scales": "*fp16"}
    sizes = {"DK": dk, "DV": dv, **step.groups(dk, dv), "SCALED": cache == "q8_0"}
    norm, few = {"width": 4096, "ADD": True, "WEIGHT": True, "BIAS": True}, {"num_warps": 1} | step.EXACTLY
    heads = {"WIDTH": 1 << (dk - 1).bit_length(), "NEOX": True, "ROTATE": True}
    heads |= dict.fromkeys(("Q_NORM", "Q_BIAS", "K_NORM", "K_BIAS"), True)
    return {
        "norm": compiled(step._norm, norm, {"num_warps": 8} | step.FUSED, card, STEP),
        "heads": compiled(step._heads, heads, few, card, STEP),
        "store": compiled(step._store, sizes, few, card, kinds),
    }


def router_needs(experts: int, score: int, card: str) -> dict[str, int]:
    """What the choice of experts takes, with groups and a bias and without."""
    from gmoe.kernels.reference_step import RouterRule, Score
    from gmoe.kernels.triton import router

    plain = RouterRule(Score(score), experts, min(8, experts))
    rules = {"plain": plain, "grouped": plain._replace(groups=4, groups_used=2, renormalize=True)}
    kinds = {"E": "i32", "scale": "fp32", "ids": "*i32"}
    return {
        name: compiled(
            router._choose, router.sizes(rule) | {"BIAS": rule.groups > 1}, router.options(rule), card, kinds
        )
        for name, rule in rules.items()
    }


def recurrent_needs(net: tuple[int, int, int], card: str) -> dict[str, int]:
    """What a short convolution over so many inputs and rules of these elements of k and of v take."""
    from gmoe.kernels.triton import recurrent

    (taps, dk, dv), power = net, lambda n: 1 << (n - 1).bit_length()
    whole = dict.fromkeys(("x_row", "before_row", "after_row", "qkv_row", "alpha_row", "beta_row", "z_row"), "i32")
    whole |= dict.fromkeys(("xbc_row", "dt_row", "N_GROUP", "N_HEAD", "SIZE"), "i32")
    whole |= dict.fromkeys(("q_row", "k_row", "v_row", "fade_row", "slot_row"), "i32")
    whole |= dict.fromkeys(("C", "N_KEY", "N_VALUE", "DK", "DV"), "i32")
    whole |= dict.fromkeys(("eps", "floor", "scale"), "fp32")
    whole |= dict.fromkeys(("starts", "source", "target", "kept", "kept_after"), "*i32")
    whole |= {"slots": "*fp32", "k": "*fp32"}
    every = dict.fromkeys(("SILU", "BEFORE", "AFTER", "BIAS"), True)
    return {
        "one": compiled(
            recurrent._convolve, every | recurrent.conv_sizes(taps, False), recurrent.CONVOLVING, card, whole
        ),
        "many": compiled(
            recurrent._convolve, every | recurrent.conv_sizes(taps, True), recurrent.CONVOLVING, card, whole
        ),
        "delta": compiled(recurrent._delta, recurrent.delta_sizes(dk, False), recurrent.ALONE, card, whole),
        "gate": compiled(recurrent._gate, recurrent.gate_sizes(dv), recurrent.ALONE, card, whole),
        "kimi": compiled(recurrent._kimi, recurrent.rule_sizes(dk), recurrent.ALONE, card, whole),
        "space": compiled(recurrent._space, recurrent.rule_sizes(dk), recurrent.ALONE, card, whole),
        "gate of a group": compiled(recurrent._gate_group, {"WIDTH": power(64 * dv)}, recurrent.TOGETHER, card, whole),
    }


def weights(formats: list[str], tiles: list[int], cards: list[str]) -> int:
    """Prints a line for each format and tile; returns how many would not run."""
    print(f"| format | tile | {' | '.join(cards)} |\n|---|---|{'---|' * len(cards)}")
    return sum(line(f"{name} | {m}", cards, lambda card: needs(name, m, card)) for name in formats for m in tiles)  # noqa: B023


def steps(cards: list[str]) -> int:
    """The same for attention and the other parts of a step."""
    print(f"\n| heads, k, v | cache | step | {' | '.join(cards)} |\n|---|---|---|{'---|' * len(cards)}")
    failed = 0
    for heads in HEADS:
        shape = " x ".join(map(str, heads))
        for cache in CACHES:
            for step in STEPS:
                text = f"{shape} | {cache} | {step}"
                failed += line(text, cards, lambda card: attention_needs(heads, cache, step, card))  # noqa: B023
            failed += line(f"{shape} | {cache} | the rest", cards, lambda card: step_needs(heads, cache, card))  # noqa: B023
    print(f"\n| router | score | {' | '.join(cards)} |\n|---|---|{'---|' * len(cards)}")
    for experts in ROUTERS:
        for score in range(4):
            failed += line(f"{experts} | {score}", cards, lambda card: router_needs(experts, score, card))  # noqa: B023
    print(f"\n| recurrent layer: taps, k, v | {' | '.join(cards)} |\n|---|{'---|' * len(cards)}")
    for net in RECURRENT:
        failed += line(" x ".join(map(str, net)), cards, lambda card: recurrent_needs(net, card))  # noqa: B023
    return failed


def line(what: str, cards: list[str], need: Callable[[str], dict[str, int]]) -> int:
    """Prints what `need` says of each card; returns on how many it would not run."""
    cells, failed = [], 0
    for card in cards:
        try:
            most = max(need(card).values())
            fits = most <= CARDS[card]
            cells.append(f"{most / 1024:.0f} KiB" + ("" if fits else ": too much"))
        except Exception as error:  # whatever Triton or its assembler says
            fits = False
            cells.append(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        failed += not fits
    print(f"| {what} | {' | '.join(cells)} |", flush=True)
    return failed


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    every = [name for name in FORMATS if name not in LEFT_OUT]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["weights", "step"], choices=("weights", "step"))
    parser.add_argument("--formats", nargs="+", default=every, choices=every, metavar="FORMAT")
    parser.add_argument("--cards", nargs="+", default=list(CARDS), choices=CARDS, help="compute capabilities")
    parser.add_argument("--tiles", nargs="+", type=int, default=list(TILES), choices=TILES)
    given = parser.parse_args(arguments)
    failed = weights(given.formats, given.tiles, given.cards) if "weights" in given.parts else 0
    failed += steps(given.cards) if "step" in given.parts else 0
    if failed:
        sys.exit(f"{failed} of these would not run")


if __name__ == "__main__":
    main()
