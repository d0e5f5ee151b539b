"""The kernels on a card, timed beside its own copy and torch's products and attention; for `gpu_suite`."""

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any
from unittest.mock import patch

from tools.gpu_end_to_end import Clock

MATRICES = ("Q4_K", "Q6_K", "Q8_0", "MXFP4", "IQ4_XS", "Q2_K", "Q3_K")
SHAPES = ((4096, 4096), (768, 2048), (2048, 768))  # rows, cols: a square one and qwen3moe's experts
ROTATED = 256 << 20  # bytes of weights in turn, past the card's caches
CARD = "cuda"
ROUNDS = 5  # after one that warms up
HEADS = {"qwen3moe": (32, 4, 128, 128), "gpt-oss": (64, 8, 64, 64), "deepseek2": (16, 1, 576, 512)}  # q, kv, dk, dv
CACHES, CONTEXTS, PROMPT = ("f16", "q8_0"), (1024, 8192, 32768), 2048
QKV = (4096, 512, 512)  # rows of qwen3moe's
LEAST = 5.0  # seconds that a table may want
TABLES = ("gemv", "grouped", "decode_attention", "prompt_attention", "launches")
N_EXPERT, N_EXPERT_USED, N_EMBD, N_FF_EXP, TOKENS = 64, 8, 2048, 768, 512


def seconds(step: Callable[[int], Any], turns: int) -> float:
    """Seconds of a `step(n)` by the card's own clock, after a warm-up that compiles: the median of whole rounds.

    A round is one graph, so that launching from Python does not count.
    """
    import torch

    for n in range(3):
        step(n)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for n in range(turns):
            step(n)
    times = []
    for _ in range(ROUNDS + 1):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3 / turns)
    return sorted(times[1:])[ROUNDS // 2]


def bandwidth_of_a_copy() -> float:
    """Bytes a second that a copy reads and writes together: what a pure reader could read."""
    import torch

    source = torch.empty(ROTATED, dtype=torch.uint8, device=CARD)
    target = torch.empty_like(source)
    return 2 * ROTATED / seconds(lambda _: target.copy_(source), 20)


def random_weights(name: str, rows: int, cols: int) -> Any:
    """Random bytes as weights; their values do not matter to the clock."""
    import torch
    from gmoe.kernels.formats import FORMATS, QuantTensor

    data = torch.randint(0, 256, (rows, FORMATS[name].row_bytes(cols)), dtype=torch.uint8, device=CARD)
    return QuantTensor(data, FORMATS[name], (rows, cols))


def random_bank(name: str) -> Any:
    """The experts of a layer as random bytes."""
    import torch
    from gmoe.kernels.bank import ExpertBank, SlotMatrix
    from gmoe.kernels.formats import FORMATS

    form, matrices, at = FORMATS[name], [], 0
    for rows, cols in ((N_FF_EXP, N_EMBD), (N_FF_EXP, N_EMBD), (N_EMBD, N_FF_EXP)):
        matrices.append(SlotMatrix(at, form, rows, cols))
        at += rows * form.row_bytes(cols)
    return ExpertBank(torch.randint(0, 256, (N_EXPERT, at), dtype=torch.uint8, device=CARD), *matrices)


def gemv(bandwidth: float, choices: Any) -> Iterator[str]:
    """One token against weights in turn."""
    import torch
    from gmoe.kernels.triton.matmul import matmul

    yield "| format | shape | GB/s | share of the copy's |\n|---|---|---|---|"
    for name in MATRICES:
        for rows, cols in SHAPES:
            one = random_weights(name, rows, cols)
            weights = [random_weights(name, rows, cols) for _ in range(max(1, ROTATED // one.data.nbytes))]
            x = torch.randn(1, cols, dtype=torch.float16, device=CARD)
            rate = one.data.nbytes / seconds(lambda n, x=x, w=weights: matmul(x, w[n % len(w)], choices=choices), 50)
            yield f"| {name} | {rows} x {cols} | {rate / 1e9:.0f} | {rate / bandwidth:.0%} |"


def grouped(choices: Any) -> Iterator[str]:
    """Many tokens through routed experts, beside torch's dense product of as many operations."""
    import torch
    from gmoe.kernels.triton.experts import expert_mlp

    def dense(n_in: int, n_out: int) -> float:
        a = torch.randn(TOKENS * N_EXPERT_USED, n_in, dtype=torch.bfloat16, device=CARD)
        b = torch.randn(n_in, n_out, dtype=torch.bfloat16, device=CARD)
        return seconds(lambda _: a @ b, 20)

    torch_seconds = 2 * dense(N_EMBD, N_FF_EXP) + dense(N_FF_EXP, N_EMBD)
    ids = torch.stack([torch.randperm(N_EXPERT)[:N_EXPERT_USED] for _ in range(TOKENS)]).int().to(CARD)
    weights = torch.full(ids.shape, 1 / N_EXPERT_USED, device=CARD)
    x = torch.randn(TOKENS, N_EMBD, dtype=torch.bfloat16, device=CARD)
    operations = 3 * 2 * TOKENS * N_EXPERT_USED * N_EMBD * N_FF_EXP
    yield "| format | TFLOP/s | of torch's bf16 |\n|---|---|---|"
    for name in MATRICES:
        bank = random_bank(name)
        took = seconds(lambda _, bank=bank: expert_mlp(x, ids, ids, weights, bank, choices=choices), 20)
        yield f"| {name} | {operations / took / 1e12:.1f} | {torch_seconds / took:.0%} |"


def decode_attention(bandwidth: float, choices: Any) -> Iterator[str]:
    """One token of one sequence against its whole context, whose bytes are all that must move."""
    yield "| heads | cache | context | us | GB/s | share of the copy's |\n|---|---|---|---|---|---|"
    for name, heads in HEADS.items():
        for cache in CACHES:
            for context in CONTEXTS:
                attend, nbytes = attention_of(heads, cache, context, 1, choices)
                took = seconds(attend, 50)
                rate = nbytes / took
                yield f"| {name} | {cache} | {context} | {1e6 * took:.0f} | {rate / 1e9:.0f} | {rate / bandwidth:.0%} |"


def prompt_attention(choices: Any) -> Iterator[str]:
    """A prompt against itself, beside torch's own attention of float16 without pages."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    yield f"| heads | cache | TFLOP/s at {PROMPT} tokens | of torch's |\n|---|---|---|---|"
    for name, (heads, kv_heads, dk, dv) in HEADS.items():
        sizes = ((heads, dk), (kv_heads, dk), (kv_heads, dv))
        q, k, v = (torch.randn(1, n, PROMPT, d, dtype=torch.float16, device=CARD) for n, d in sizes)
        theirs = seconds(lambda _, a=(q, k, v): scaled_dot_product_attention(*a, is_causal=True, enable_gqa=True), 10)
        for cache in CACHES:
            took = seconds(attention_of((heads, kv_heads, dk, dv), cache, PROMPT, PROMPT, choices)[0], 5)
            rate = PROMPT * PROMPT * heads * (dk + dv) / took  # half of the square, two operations a product
            yield f"| {name} | {cache} | {rate / 1e12:.1f} | {theirs / took:.0%} |"


def attention_of(
    heads: tuple[int, int, int, int], cache: Any, context: int, rows: int, choices: Any
) -> tuple[Any, int]:
    """Attention of a sequence's last `rows` to its cache in scattered blocks, and the cache's bytes."""
    import torch
    from gmoe.kernels.kv import BLOCK, KvLayer, KvShape
    from gmoe.kernels.reference_step import Mask, Turns
    from gmoe.kernels.triton.attention import attention

    n_head, n_kv, dk, dv = heads
    n_blocks, shape = context // BLOCK, KvShape(n_kv, dk, dv)
    kv = KvLayer(shape, n_blocks, cache, CARD)
    table = torch.randperm(n_blocks)[None].int().to(CARD)
    lengths, starts = torch.tensor([context]).int(), torch.tensor([0, rows]).int()
    turns = Turns(torch.arange(context - rows, context, device=CARD), table, lengths, starts, starts.to(CARD))
    q = torch.randn(rows, n_head, dk, device=CARD)
    attend = lambda _, how=None: attention(q, kv, turns, dk**-0.5, Mask("causal"), None, how, choices)  # noqa: E731
    return attend, context * shape.nbytes(cache)


def launches(choices: Any) -> Iterator[str]:
    """What a decode step does between its products, beside the chains of torch that say the same."""
    import torch
    from gmoe.kernels import reference_step
    from gmoe.kernels.kv import KvLayer, KvShape
    from gmoe.kernels.triton import linears, matmul, router, step

    rule = reference_step.RouterRule(reference_step.Score.SOFTMAX, N_EXPERT, N_EXPERT_USED, renormalize=True)
    logits = torch.randn(1, N_EXPERT, device=CARD)
    x, weight = torch.randn(1, N_EMBD, device=CARD), torch.randn(N_EMBD, device=CARD)
    other = torch.zeros_like(x)
    heads, frequencies = torch.randn(1, 32, 128, device=CARD), torch.randn(64, device=CARD)
    position, slot = (torch.full((1,), n, device=CARD) for n in (100, 40))
    kv, key = KvLayer(KvShape(4, 128, 128), 4, "q8_0", CARD), torch.randn(1, 4, 128, device=CARD)

    head = reference_step.HeadRule(torch.randn(128, device=CARD), None, 1e-6)
    turn = reference_step.Turn(frequencies, 1.0, True)
    maps = [(random_weights("Q8_0", rows, N_EMBD), None) for rows in QKV]

    def chain(of: Any) -> Any:
        angles = position[:, None].float() * frequencies
        return reference_step.rotate(of, torch.arange(1, device=CARD), angles.cos(), angles.sin(), True)

    def prepared(_: int) -> Any:
        return [chain(reference_step.rms_norm(of, *head)) for of in (heads, key)]

    def summed(_: int) -> Any:
        return reference_step.rms_norm(other.add_(x), weight, None, 1e-6)

    pairs = {
        "sum and norm": (lambda _: step.residual_norm(x, other, 1.0, weight, None, 1e-6), summed),
        "32 + 4 heads": (lambda _: step.heads(heads, key, (head, head), position, turn), prepared),
        "router, 8 of 64": (lambda _: router.choose(logits, rule), lambda _: reference_step.choose(logits, rule)),
        "store, q8_0": (lambda _: step.store(kv, slot, key, key), lambda _: kv.write(slot, key, key)),
        "q, k, v; one by one": (
            lambda _: linears.linears(x, maps, False, choices),
            lambda _: [matmul.matmul(x, w, exact=False, choices=choices) for w, _ in maps],
        ),
    }
    yield "| one token | us | torch: us |\n|---|---|---|"
    for name, both in pairs.items():
        ours, theirs = (1e6 * seconds(one, 50) for one in both)
        yield f"| {name} | {ours:.0f} | {theirs:.0f} |"


def once(name: str) -> None:
    """Compile what a table needs, for the processes to come."""
    choices = import_module("gmoe.kernels.triton.tuned").SHIPPED
    with patch(f"{__name__}.seconds", lambda step, turns: (step(0), 1.0)[1]):
        given = (1.0,) if name in ("gemv", "decode_attention") else ()
        for _ in globals()[name](*given, choices):
            pass


def kernels(clock: Clock, choices: Any) -> Iterator[str]:
    """The kernels' tables, launched by `choices` (`tuned.Choices`)."""
    bandwidth = bandwidth_of_a_copy()
    said = f"A copy moves {bandwidth / 1e9:.0f} GB/s, reads and writes together."
    shape = f"{TOKENS} tokens, {N_EXPERT} experts, top-{N_EXPERT_USED}, {N_EMBD} / {N_FF_EXP}"
    tables = {
        f"## One token\n\n{said}\n": lambda: gemv(bandwidth, choices),
        f"## {shape}\n": lambda: grouped(choices),
        "## Attention, one token\n": lambda: decode_attention(bandwidth, choices),
        "## Attention, a prompt\n": lambda: prompt_attention(choices),
        "## Launches\n": lambda: launches(choices),
    }
    for title, table in tables.items():
        yield f"\n{title}"
        if clock.left() < LEAST:
            yield "Left out: no time."
            continue
        yield from table()
