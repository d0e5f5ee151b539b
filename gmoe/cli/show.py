"""`gmoe show`: what a GGUF file holds, its experts above all."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import click

from gmoe.gguf.file import GGUFFile
from gmoe.gguf.layout import ExpertLayout
from gmoe.library.find import model_file

Rows = Iterable[tuple[str, ...]]
SAMPLING = "general.sampling."
MOST_EXPERTS = 1 << 16
# `general.file_type`, as ggml numbers and names it
FILE_TYPES = dict(enumerate("F32 F16 Q4_0 Q4_1 - - - Q8_0 Q5_0 Q5_1 Q2_K Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M".split()))
FILE_TYPES |= dict(enumerate("Q5_K_S Q5_K_M Q6_K IQ2_XXS IQ2_XS Q2_K_S IQ3_XS IQ3_XXS IQ1_S IQ4_NL".split(), start=16))
FILE_TYPES |= dict(
    enumerate("IQ3_S IQ3_M IQ2_S IQ2_M IQ4_XS IQ1_M BF16 - - - TQ1_0 TQ2_0 MXFP4_MOE NVFP4".split(), start=26)
)


@click.command()
@click.argument("model")
@click.option("-v", "--verbose", is_flag=True, help="Metadata, tensors, and the experts layer by layer too.")
@click.option("--license", "license_", is_flag=True, help="Only the licence.")
@click.option("--parameters", is_flag=True, help="Only the sampling parameters that the file recommends.")
@click.option("--template", is_flag=True, help="Only the chat template.")
def show(model: str, verbose: bool, license_: bool, parameters: bool, template: bool) -> None:
    """Show the sections of MODEL, a GGUF file or the name of a model."""
    if license_ + parameters + template > 1:
        raise click.UsageError("only one of '--license', '--parameters' or '--template' can be specified")
    with GGUFFile.open(model_file(model)) as file:
        if template:
            click.echo(file.metadata.get("tokenizer.chat_template", ""))
        elif license_:
            click.echo("\n".join(row[-1] for row in _license(file.metadata)))
        elif parameters:
            click.echo("\n".join(_columns(_parameters(file.metadata), indent="")))
        else:
            click.echo(describe(file, verbose))


def describe(file: GGUFFile, verbose: bool = False) -> str:
    """The sections as text, in Ollama's manner; an architecture that gmoe cannot run is described as well."""
    metadata = file.metadata
    sections: list[tuple[str, Rows]] = [
        ("Model", _model(file)),
        ("Capabilities", [(name,) for name in _capabilities(metadata)]),
        ("Experts", _experts(file, verbose)),
        ("Parameters", _parameters(metadata)),
        ("License", _license(metadata)),
    ]
    if verbose:
        sections.append(("Metadata", [(name, _short(value)) for name, value in metadata.items()]))
        tensors = file.tensors.values()
        sections.append(("Tensors", [(info.name, info.format.name, str(list(info.shape))) for info in tensors]))
    lines = []
    for title, rows in sections:
        if body := _columns(rows):
            lines += [f"  {title}", *body, ""]
    return "\n".join(lines)


def _model(file: GGUFFile) -> Rows:
    yield "architecture", file.architecture or "none"
    yield "parameters", _count(sum(math.prod(info.shape) for info in file.tensors.values()))
    for title, key in (("context length", "context_length"), ("embedding length", "embedding_length")):
        if (value := _whole(file, key)) is not None:
            yield title, str(value)
    yield "quantization", _quantization(file)


def _quantization(file: GGUFFile) -> str:
    """What the file calls itself, else the type that most of its weights have."""
    number = file.metadata.get("general.file_type")
    name = FILE_TYPES.get(number, "-") if isinstance(number, int) else "-"
    weights: Counter[str] = Counter()
    for info in file.tensors.values():
        weights[info.format.name] += math.prod(info.shape)
    return name if name != "-" or not weights else weights.most_common(1)[0][0]


def _capabilities(metadata: Mapping[str, Any]) -> Iterator[str]:
    template = str(metadata.get("tokenizer.chat_template", ""))
    yield "completion"
    if "tools" in template:
        yield "tools"
    if "<think>" in template or "enable_thinking" in template or "reasoning_effort" in template:
        yield "thinking"
    if "tokenizer.ggml.fim_pre_token_id" in metadata or "tokenizer.ggml.prefix_token_id" in metadata:
        yield "insert"


def _experts(file: GGUFFile, layer_by_layer: bool) -> Rows:
    """How many, how large, and which types in which layers; nothing for a dense model."""
    n_expert = _whole(file, "expert_count") or 0
    blocks = [int(match[1]) for match in map(re.compile(r"blk\.(\d{1,5})\.").match, file.tensors) if match]
    if not 0 < n_expert <= MOST_EXPERTS or not blocks:
        return
    layers = ExpertLayout(file, max(blocks) + 1, n_expert)
    yield "experts", f"{n_expert} a layer"
    yield "used", f"{_whole(file, 'expert_used_count') or 0} a token"
    shared = _whole(file, "expert_shared_count") or int(any("_shexp." in name for name in file.tensors))
    yield "shared", str(shared or "none")
    yield "layers", f"{len(layers.layers)} of {max(blocks) + 1} have experts"
    total = sum(layers.expert_bytes(layer) for layer in layers.layers) * n_expert
    yield "all experts", f"{_bytes(total)} of {_bytes(sum(info.nbytes for info in file.tensors.values()))}"
    alike: dict[tuple[Any, ...], list[int]] = {}
    for layer, experts in layers.layers.items():
        types = "/".join(stack.format.name for stack in experts if stack is not None)
        alike.setdefault((types, layers.expert_bytes(layer), layer if layer_by_layer else 0), []).append(layer)
    for (types, size, _), numbers in alike.items():
        yield f"layer{'s' if len(numbers) > 1 else ''} {_ranges(numbers)}", f"{types}, {_bytes(size)} an expert"


def _parameters(metadata: Mapping[str, Any]) -> Rows:
    return [(key.removeprefix(SAMPLING), _short(v)) for key, v in metadata.items() if key.startswith(SAMPLING)]


def _license(metadata: Mapping[str, Any]) -> Rows:
    keys = ("general.license", "general.license.name", "general.license.link")
    return [(str(metadata[key]).rstrip(),) for key in keys if key in metadata]


def _whole(file: GGUFFile, key: str) -> int | None:
    """A whole number of the architecture's metadata; None where there is none."""
    value = file.metadata.get(f"{file.architecture}.{key}")
    return value if isinstance(value, int) else None


def _ranges(numbers: Sequence[int]) -> str:
    """[0, 1, 2, 5] -> "0-2, 5"."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and runs[-1][-1] == n - 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _columns(rows: Rows, indent: str = "    ") -> list[str]:
    """Cells under each other; what a terminal would obey in a file's text is made visible."""
    table = [[_visible(cell) for cell in row] for row in rows]
    widths = [max(len(row[n]) for row in table if len(row) > n) for n in range(max(map(len, table), default=0))]
    return [indent + "    ".join(c.ljust(w) for c, w in zip(row, widths, strict=False)).rstrip() for row in table]


def _visible(text: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _short(value: Any) -> str:
    if isinstance(value, str):
        first = value.split("\n")[0]
        return first if first == value and len(first) <= 60 else first[:57] + "..."
    if hasattr(value, "__len__"):
        head = ", ".join(str(entry) for entry in list(value[:3]))
        return f"[{head}{', ...' if len(value) > 3 else ''}] ({len(value)} entries)"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _count(n: int) -> str:
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if n >= size:
            return f"{n / size:.1f}{unit}"
    return str(n)


def _bytes(n: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if n < 1024:
            return f"{n:.1f} {unit}" if unit != "B" else f"{int(n)} B"
        n /= 1024
    return f"{n:.1f} GiB"
