"""`gmoe show`: what a GGUF file holds, its experts above all."""

from collections import Counter
from collections.abc import Iterable, Sequence

import click

from gmoe.gguf.file import GGUFFile
from gmoe.gguf.hparams import Hparams
from gmoe.gguf.layout import ExpertLayout

Rows = Iterable[tuple[str, ...]]


@click.command()
@click.argument("model", type=click.Path())
@click.option("-v", "--verbose", is_flag=True, help="Metadata and tensors too.")
@click.option("--template", is_flag=True, help="Only the chat template.")
@click.option("--license", "license_", is_flag=True, help="Only the licence.")
def show(model: str, verbose: bool, template: bool, license_: bool) -> None:
    """Show the sections of MODEL, the path of a GGUF file."""
    if template and license_:
        raise click.UsageError("only one of '--template' and '--license' can be specified")
    with GGUFFile.open(model) as file:
        if template:
            click.echo(file.metadata.get("tokenizer.chat_template", ""))
        elif license_:
            click.echo(file.metadata.get("general.license", ""))
        else:
            click.echo(describe(file, verbose))


def describe(file: GGUFFile, verbose: bool = False) -> str:
    """The sections as text, in Ollama's manner."""
    hp = Hparams.from_metadata(file.metadata, str(file.path))
    n_parameters = sum(_product(info.shape) for info in file.tensors.values())
    sections: list[tuple[str, Rows]] = [
        (
            "Model",
            [
                ("architecture", hp.architecture),
                ("parameters", _count(n_parameters)),
                ("context length", str(hp.n_ctx_train)),
                ("embedding length", str(hp.n_embd)),
                ("quantization", _main_type(file)),
            ],
        ),
        ("Capabilities", [(name,) for name in _capabilities(file)]),
    ]
    if hp.n_expert:
        sections.append(("Experts", _experts(file, hp)))
    licence = file.metadata.get("general.license")
    if licence:
        sections.append(("License", [(str(licence),)]))
    if verbose:
        sections.append(("Metadata", [(name, _short(value)) for name, value in file.metadata.items()]))
        rows = [(info.name, info.format.name, str(list(info.shape))) for info in file.tensors.values()]
        sections.append(("Tensors", rows))
    return "\n".join(line for title, rows in sections for line in [f"  {title}", *_columns(rows), ""])


def _experts(file: GGUFFile, hp: Hparams) -> Rows:
    layout = ExpertLayout(file, hp.n_layer, hp.n_expert)
    yield "experts", f"{hp.n_expert} a layer, {hp.n_expert_used} used"
    if hp.n_expert_shared or hp.n_ff_shexp:
        yield "shared experts", str(hp.n_expert_shared or 1)
    yield "layers", f"{len(layout.layers)} of {hp.n_layer} routed"
    total = sum(layout.expert_bytes(layer) * hp.n_expert for layer in layout.layers)
    yield "all experts", f"{_bytes(total)} of {_bytes(sum(info.nbytes for info in file.tensors.values()))}"
    groups: dict[tuple[str, int], list[int]] = {}
    for layer, experts in layout.layers.items():
        types = "/".join(stack.format.name for stack in experts if stack is not None)
        groups.setdefault((types, layout.expert_bytes(layer)), []).append(layer)
    for (types, size), layers in groups.items():
        yield f"layers {_ranges(layers)}", f"{types}, {_bytes(size)} an expert"


def _capabilities(file: GGUFFile) -> list[str]:
    template = str(file.metadata.get("tokenizer.chat_template", ""))
    found = ["completion"]
    found += ["tools"] if "tools" in template else []
    found += ["thinking"] if "<think>" in template or "enable_thinking" in template else []
    return found


def _main_type(file: GGUFFile) -> str:
    weight: Counter[str] = Counter()
    for info in file.tensors.values():
        weight[info.format.name] += _product(info.shape)
    return weight.most_common(1)[0][0] if weight else "none"


def _ranges(numbers: Sequence[int]) -> str:
    """[0, 1, 2, 5] -> "0-2, 5"."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and runs[-1][-1] == n - 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _columns(rows: Rows) -> list[str]:
    rows = list(rows)
    widths = [max(len(row[n]) for row in rows if len(row) > n) for n in range(max(map(len, rows), default=0))]
    return ["    " + "    ".join(cell.ljust(widths[n]) for n, cell in enumerate(row)).rstrip() for row in rows]


def _short(value: object) -> str:
    if isinstance(value, str):
        return value.split("\n")[0][:60]
    return f"[{len(value)} entries]" if hasattr(value, "__len__") else str(value)


def _product(shape: Sequence[int]) -> int:
    n = 1
    for rows in shape:
        n *= rows
    return n


def _count(n: int) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if n >= size:
            return f"{n / size:.1f}{unit}"
    return str(n)


def _bytes(n: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if n < 1024:
            return f"{n:.1f} {unit}" if unit != "B" else f"{int(n)} B"
        n /= 1024
    return f"{n:.1f} GiB"
