"""`gmoe bench`: llama-bench's tests and table, and what of the machine's limits they reach."""

import csv
import io
import json
import random
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from gmoe import __version__
from gmoe.cli.options import runtime_flags, take
from gmoe.cli.output import say_notes
from gmoe.library.find import model_file
from gmoe.options import RuntimeOptions


@dataclass(frozen=True)
class Row:
    """One test, in llama-bench's words, then in ours."""

    build_commit: str
    build_number: int
    cpu_info: str
    gpu_info: str
    model_filename: str
    model_type: str
    model_size: int
    model_n_params: int
    backends: str
    n_batch: int
    n_ubatch: int
    n_threads: int
    n_gpu_layers: int
    type_k: str
    type_v: str
    cpu_mask: str
    cpu_strict: bool
    split_mode: str
    main_gpu: int
    no_kv_offload: bool
    tensor_split: str
    flash_attn: bool
    use_mmap: bool
    use_direct_io: bool
    embeddings: bool
    n_prompt: int
    n_gen: int
    n_depth: int
    test_time: str
    avg_ns: int
    stddev_ns: int
    avg_ts: float
    stddev_ts: float
    samples_ns: list[int]
    samples_ts: list[float]
    load_seconds: float
    peak_memory_beside_model: int  # bytes
    bytes_moved: int  # from disk
    hit_rate: float | None  # of experts in the fast tier
    memory_bandwidth: float  # bytes a second, measured
    disk_bandwidth: float | None
    bandwidth_share: float | None  # of the memory's, that one token's weights take
    disk_share: float | None  # of the disk's, that experts take which are read past the page cache

    @property
    def test(self) -> str:
        """As llama-bench names it."""
        name = f"pp{self.n_prompt}" if self.n_prompt else f"tg{self.n_gen}"
        return f"{name} @ d{self.n_depth}" if self.n_depth else name


def _weights_of_a_token(llm: Any) -> int:
    """Bytes of weights that one token's pass reads."""
    from gmoe.experts.budget import tables

    hp, read_by_row = llm.hparams, tables(llm.file)
    total = 0
    for name, info in llm.file.tensors.items():
        if "_exps." in name:
            total += info.nbytes * hp.n_expert_used // hp.n_expert
        elif "_chexps." in name:
            total += info.nbytes * hp.n_expert_used // info.shape[0]
        elif name not in read_by_row:
            total += info.nbytes
    return total


def _measure(llm: Any, ids: list[int], n_prompt: int, n_gen: int, depth: int, repeat: int, base: dict[str, Any]) -> Row:
    size = depth + (n_prompt or n_gen)
    before = _fast_tier(llm.stats)
    llm.seconds(ids[: min(size, 8)], 0, n_prompt == 0)  # warm
    warm = llm.stats["host"]["bytes_loaded"]
    samples = [llm.seconds(ids[:size], depth, n_prompt == 0) for _ in range(repeat)]
    host = _fast_tier(llm.stats)
    hits, misses = (host[name] - before[name] for name in ("hits", "misses"))
    rates = [(n_prompt or n_gen) / s for s in samples]
    share = None
    if n_gen:
        share = statistics.median(rates) * _weights_of_a_token(llm) / base["memory_bandwidth"]
    disk_share = None
    if llm.cache.reader == "direct" and base["disk_bandwidth"]:
        disk_share = (llm.stats["host"]["bytes_loaded"] - warm) / sum(samples) / base["disk_bandwidth"]
    return Row(
        **base,
        n_prompt=n_prompt,
        n_gen=n_gen,
        n_depth=depth,
        test_time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        avg_ns=int(statistics.mean(samples) * 1e9),
        stddev_ns=int(_spread(samples) * 1e9),
        avg_ts=statistics.mean(rates),
        stddev_ts=_spread(rates),
        samples_ns=[int(s * 1e9) for s in samples],
        samples_ts=rates,
        bytes_moved=host["bytes_loaded"] - before["bytes_loaded"],
        hit_rate=hits / (hits + misses) if hits + misses else None,
        bandwidth_share=share,
        disk_share=disk_share,
        peak_memory_beside_model=_peak(llm),
    )


def _fast_tier(stats: dict[str, Any]) -> Any:
    """The counters of the tier that the kernels read: a GPU's where there is one, else the host's."""
    return stats.get("gpu", stats["host"])


def _spread(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _peak(llm: Any) -> int:
    from gmoe.machine import memory_beside

    return memory_beside(Path(llm.file.path))


def _markdown(rows: list[Row]) -> str:
    table = [["model", "size", "params", "backend", "threads", "test", "t/s", "memory read", "disk read", "hits"]]
    for r in rows:
        memory, disk = ("" if share is None else f"{100 * share:.0f} %" for share in (r.bandwidth_share, r.disk_share))
        hits = "" if r.hit_rate is None else f"{100 * r.hit_rate:.1f} %"
        n, m = r.model_size, r.model_n_params
        size = f"{n / 2**30:.2f} GiB" if n >= 2**30 else f"{n / 2**20:.2f} MiB"
        params = f"{m / 1e9:.2f} B" if m >= 1e9 else f"{m / 1e6:.2f} M"
        speed = f"{r.avg_ts:.2f} ± {r.stddev_ts:.2f}"
        table.append([r.model_type, size, params, r.backends, str(r.n_threads), r.test, speed, memory, disk, hits])
    widths = [max(len(row[n]) for row in table) for n in range(len(table[0]))]
    lines = ["| " + " | ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in table]
    lines.insert(1, "| " + " | ".join("-" * (w - 1) + ":" for w in widths) + " |")
    first = rows[0]
    disk = "" if first.disk_bandwidth is None else f", disk {first.disk_bandwidth / 1e9:.2f} GB/s"
    lines.append("")
    lines.append(
        f"loaded in {first.load_seconds:.2f} s; peak memory beside the model's pages "
        f"{max(r.peak_memory_beside_model for r in rows) / 2**20:.0f} MiB; "
        f"read from disk {sum(r.bytes_moved for r in rows) / 2**20:.0f} MiB; "
        f"measured: memory {first.memory_bandwidth / 1e9:.1f} GB/s{disk}"
    )
    return "\n".join(lines)


def _csv(rows: list[Row]) -> str:
    out = io.StringIO()
    table = csv.DictWriter(out, list(asdict(rows[0])))
    table.writeheader()
    table.writerows(asdict(row) for row in rows)
    return out.getvalue().rstrip()


def _counts(default: str) -> dict[str, Any]:
    """An option that takes numbers with commas between them, several times as well, as llama-bench does."""

    def parse(ctx: click.Context, param: click.Parameter, given: tuple[str, ...]) -> list[int]:
        try:
            counts = [int(count) for text in given for count in text.split(",")]
        except ValueError:
            counts = [-1]
        if min(counts) < 0:
            raise click.BadParameter(f"{','.join(given)!r} are no counts of tokens, such as 512 or 128,512")
        return counts

    return {"default": (default,), "show_default": True, "metavar": "N,...", "multiple": True, "callback": parse}


@click.command()
@click.argument("model")
@click.option("-p", "--n-prompt", **_counts("512"), help="Tokens of the prompt tests, as 512,1024; 0: none.")
@click.option("-n", "--n-gen", **_counts("128"), help="Tokens of the generation tests; 0: none.")
@click.option("-d", "--n-depth", **_counts("0"), help="Tokens of context before each.")
@click.option("-t", "short_threads", type=int, help="The same as --threads.")
@click.option("-r", "--repetitions", default=5, show_default=True, help="Times each is measured.")
@click.option("-o", "--output", type=click.Choice(["md", "json", "jsonl", "csv"]), default="md", show_default=True)
@click.option("--text", type=click.Path(path_type=Path), help="Real text, so that routing is real; else random tokens.")
@runtime_flags
def bench(
    model: str,
    n_prompt: list[int],
    n_gen: list[int],
    n_depth: list[int],
    short_threads: int | None,
    repetitions: int,
    output: str,
    text: Path | None,
    **flags: Any,
) -> None:
    """Measure MODEL, a GGUF file or the name of a model, with llama-bench's tests."""
    kinds = [(depth, p, 0) for depth in n_depth for p in n_prompt if p]
    kinds += [(depth, 0, g) for depth in n_depth for g in n_gen if g]
    if repetitions < 1 or not kinds:
        raise click.UsageError("-p, -n and -d count tokens, -r times; one of -p and -n must be there")
    need = max(n_depth) + max(*n_prompt, *n_gen)
    flags["threads"] = flags["threads"] if short_threads is None else short_threads
    flags["context"] = max(flags.get("context") or 0, need)
    flags["max_sequences"] = 1
    options = take(RuntimeOptions, flags)
    path = model_file(model)
    began = time.perf_counter()
    from gmoe.llm import LLM

    with LLM.load(path, options) as llm:
        say_notes(llm.notices)
        loaded = time.perf_counter() - began
        from gmoe.machine import SAMPLE, cpu_name, disk_bandwidth, memory_bandwidth, usable_cores

        ids = _tokens(llm, text, need)
        threads = options.threads or usable_cores()
        largest = max(llm.file.tensors.values(), key=lambda info: info.nbytes)
        data = llm.file.view(largest.name).data.reshape(-1)[:SAMPLE]
        info = llm.file.tensors.values()
        base = {
            "build_commit": __version__,
            "build_number": 0,  # as llama.cpp has it where it is not known
            "cpu_info": cpu_name(),
            "gpu_info": "" if llm.device is None else llm.device.name,
            "model_filename": str(path),
            "model_type": f"{llm.hparams.architecture} {_common_format(llm)}",
            "model_size": sum(i.nbytes for i in info),
            "model_n_params": sum(i.nbytes // i.format.type_size * i.format.block_size for i in info),
            "backends": "CPU" if llm.device is None else "CUDA",
            "n_batch": llm.chunk,
            "n_ubatch": llm.chunk,
            "n_threads": threads,
            "n_gpu_layers": 0 if llm.device is None else llm.hparams.n_layer,
            "type_k": options.kv_type,
            "type_v": options.kv_type,
            **_as_llama_bench_says(llm),
            "load_seconds": loaded,
            "memory_bandwidth": memory_bandwidth(data, threads),
            "disk_bandwidth": disk_bandwidth(path),
        }
        rows = [_measure(llm, ids, p, g, depth, repetitions, base) for depth, p, g in kinds]
    if output == "json":
        click.echo(json.dumps([asdict(row) for row in rows], indent=2))
    elif output == "jsonl":
        click.echo("\n".join(json.dumps(asdict(row)) for row in rows))
    else:
        click.echo(_markdown(rows) if output == "md" else _csv(rows))


def _as_llama_bench_says(llm: Any) -> dict[str, Any]:
    """What scripts ask of a row: of no mask, one device, attention in blocks, and how the file is read."""
    direct = llm.cache.reader == "direct"
    return {
        "cpu_mask": "0x0",
        "cpu_strict": False,
        "split_mode": "none",
        "main_gpu": 0 if llm.device is None else llm.device.torch.index or 0,
        "no_kv_offload": False,
        "tensor_split": "0.00",
        "flash_attn": True,
        "use_mmap": not direct,
        "use_direct_io": direct,
        "embeddings": False,
    }


def _tokens(llm: Any, text: Path | None, need: int) -> list[int]:
    if text is None:
        draw = random.Random(0)
        return [draw.randrange(llm.tokenizer.n_vocab) for _ in range(need)]
    ids: list[int] = llm.tokenizer.encode(text.read_text("utf-8", "replace"), add_special=True, parse_special=False)
    if len(ids) < need:
        raise click.UsageError(f"{text} has {len(ids)} tokens, the tests need {need}")
    return ids[:need]


def _common_format(llm: Any) -> str:
    """The type that most of the file's bytes have."""
    total: dict[str, int] = {}
    for info in llm.file.tensors.values():
        total[info.format.name] = total.get(info.format.name, 0) + info.nbytes
    return max(total, key=lambda name: total[name])
