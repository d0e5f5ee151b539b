"""`gmoe plan`: what goes where, and how fast it would be, before anything is loaded."""

from pathlib import Path
from typing import Any

import click

from gmoe.cli.errors import usage
from gmoe.cli.output import say_notes
from gmoe.engine.state_slots import n_slots
from gmoe.experts.budget import Budget, budget_of
from gmoe.experts.cost import CostModel, Costs, key
from gmoe.experts.device_budget import KV_SHARE, RESERVE, DeviceBudget, state_bytes, token_bytes
from gmoe.experts.device_cost import link_rate
from gmoe.experts.device_slots import device_groups
from gmoe.experts.device_worth import GAIN, NEVER, foretell
from gmoe.experts.fingerprint import header
from gmoe.experts.plan import Plan, Speed, made_up
from gmoe.experts.plan import plan as reckon
from gmoe.experts.slots import Group
from gmoe.experts.trace import Trace
from gmoe.experts.trace_file import TraceFile
from gmoe.gguf.file import GGUFFile
from gmoe.gguf.hparams import Hparams
from gmoe.gguf.layout import ExpertLayout
from gmoe.kernels.cpu_ops import usable_cores
from gmoe.library.find import model_file
from gmoe.library.home import home
from gmoe.loadable import hparams_of
from gmoe.options import MOST_THREADS, RuntimeOptions, memory_bytes

MIB = 1 << 20
SEQUENCES = 4  # decoded together where nothing else is said


@click.command()
@click.argument("model")
@click.option("--host-memory", default="auto", show_default=True, help="Budget for all weights in RAM.")
@click.option("--gpu-memory", help="Say what a GPU would hold that has so much free: 8GiB; auto: this one.")
@click.option("--trace", type=click.Path(path_type=Path), help="Routing trace; also found beside the model.")
@click.option(
    "--threads", type=click.IntRange(0, MOST_THREADS), default=0, help="CPU threads; 0: the cores this process may use."
)
def plan(model: str, host_memory: str, gpu_memory: str | None, trace: Path | None, threads: int) -> None:
    """Say where the weights of MODEL would go on this machine, how fast it would be, and what would help most."""
    with usage():
        RuntimeOptions(host_memory=host_memory, gpu_memory=gpu_memory or "auto", threads=threads)  # as a run takes them
    with GGUFFile.open(model_file(model)) as file:
        hparams = hparams_of(file)
        layout = ExpertLayout(file, hparams.n_layer, hparams.n_expert)
        if not layout.layers:
            raise click.ClickException(f"{file.path} has no experts: it is used straight from the map")
        budget = budget_of(file, layout, hparams, host_memory)
        known = TraceFile(file.path, trace, header(file, layout, hparams.n_layer))
        costs = _costs(file, layout, threads or usable_cores())
        told = None if known.trace is None else known.trace.decoding()
        routing = told or made_up(known.header, hparams.n_expert_used)
        found = reckon(budget, costs, routing, budget.kv_share if budget.asked is None else 0)
        lines = [*_places(budget, found), *_speeds(found, costs, told)]
        here, card = _here()
        if gpu_memory is not None:
            lines += _on_device(gpu_memory, budget, hparams, costs, known)
        elif card:
            try:
                lines += _on_device("auto", budget, hparams, costs, known)
            except Exception as error:  # nobody asked for the card, which may be full, small or out of order
                from gmoe.experts.device import sentence

                here = f"run --device auto: the CPU, {sentence(error)}"
        for line in [*lines, here]:
            click.echo(line)
        say_notes(known.notices)


def _costs(file: GGUFFile, layout: ExpertLayout, threads: int) -> Costs:
    """Those of earlier runs, or measured now."""
    model = CostModel(home(), key(layout, threads, "q8"))
    if model.costs is None:
        import torch

        from gmoe.experts.measure import measure

        torch.set_num_threads(threads)
        model.costs = measure(file, layout, "q8")
        model.save()
    return model.costs


def _places(budget: Budget, plan: Plan) -> list[str]:
    fixed, experts = budget.fixed / MIB, budget.experts / MIB
    share = 100 * plan.slots / plan.experts
    where = "straight from the map of the file" if plan.whole else "in slots, the others on disk"
    lines = [
        f"other weights   {fixed:9.0f} MiB  in memory",
        f"experts         {experts:9.0f} MiB  {plan.slots} of {plan.experts} ({share:.0f} %) in memory, {where}",
    ]
    return lines


def _here() -> tuple[str, bool]:
    """What device="auto" is on this machine, and whether it is a card."""
    from gmoe.experts.device import DeviceError, open_device
    from gmoe.experts.device_auto import usable

    if not usable():
        return "run --device auto: the CPU, there is no card that torch can use", False
    try:
        device = open_device("cuda")
    except DeviceError as error:
        return f"run --device auto: the CPU, {error}", False
    assert device is not None
    return f"run --device auto: {device.name}, if its kernels compute what the CPU does when the model is loaded", True


def _on_device(gpu_memory: str, budget: Budget, hparams: Hparams, costs: Costs, known: TraceFile) -> list[str]:
    """What `run --device cuda` would put where on a card with so much free memory; "auto": the card of this machine."""
    link = 0.0
    if gpu_memory == "auto" or gpu_memory.endswith("%"):
        from gmoe.experts.device import open_device

        device = open_device("cuda")
        assert device is not None
        free, link = memory_bytes(gpu_memory, device.free(), "gpu_memory"), link_rate(device)
    else:
        free = memory_bytes(gpu_memory, 0, "gpu_memory")
    token = token_bytes(hparams)
    kv = min(SEQUENCES * hparams.n_ctx_train * token, int(KV_SHARE * max(0, free - budget.fixed)))
    groups, _ = device_groups(budget.layout)
    work = budget.activations(budget.chunk(0))
    states = n_slots(SEQUENCES, apart=True) * state_bytes(hparams)
    there = DeviceBudget(budget.name, groups, free, budget.fixed, kv + states, work)
    counts = there.counts()
    experts, fit = sum(group.experts for group in groups), sum(counts)
    size = sum(count * group.slot_bytes for count, group in zip(counts, groups, strict=True))
    missed = "all of them: nothing is copied while it runs" if there.whole else "the others stay in memory"
    pays = [] if there.whole else _copying(list(zip(groups, counts, strict=True)), costs, known, link)
    return [
        "",
        f"on a GPU with   {free / MIB:9.0f} MiB  free",
        f"other weights   {budget.fixed / MIB:9.0f} MiB",
        f"KV cache        {kv / MIB:9.0f} MiB  {kv // token} tokens for {SEQUENCES} sequences",
        *[f"states          {states / MIB:9.0f} MiB  of recurrent layers"] * bool(states),
        f"a pass, kernels {(work + RESERVE) / MIB:9.0f} MiB  {budget.chunk(0)} tokens of a prompt at a time",
        f"experts         {size / MIB:9.0f} MiB  {fit} of {experts} ({100 * fit / experts:.0f} %); {missed}",
        *pays,
        "the speed there is not foretold: no card has been measured",
    ]


def _copying(slots: list[tuple[Group, int]], costs: Costs, known: TraceFile, link: float) -> list[str]:
    """Whether experts that do not fit are copied or computed on the CPU; `link` in bytes/s, 0: not known."""
    rate = None if known.trace is None else foretell(known.trace, [(g.layers, n) for g, n in slots], NEVER)[0]
    missed = 1 - sum(n for _, n in slots) / sum(group.experts for group, _ in slots) if rate is None else rate
    size = sum(group.experts * group.slot_bytes for group, _ in slots) / sum(group.experts for group, _ in slots)
    least = missed * size / (GAIN * costs.expert_seconds)
    there = f"{100 * (1 - missed):.0f} % of what a token wants would be there"
    if not link:
        return [f"the others are copied if the link moves {least / 1e9:.1f} GB/s, else computed on the CPU: {there}"]
    does = "copied" if link >= least else "computed on the CPU, which is faster"
    return [f"the others are {does}: the link moves {link / 1e9:.1f} GB/s, {least / 1e9:.1f} pay, and {there}"]


def _speeds(plan: Plan, costs: Costs, told: Trace | None) -> list[str]:
    def row(name: str, speed: Speed) -> str:
        numbers = f"{speed.decode:8.1f} {speed.prefill:9.0f} {100 * speed.hit_rate:7.1f}"
        return f"{name:16}{numbers} {speed.bytes / MIB:14.1f}"

    seen = f"{costs.passes} passes seen" if costs.passes else "no run seen yet: the part outside the experts is a guess"
    whose = f"{told.header.model}'s trace" if told else "made-up routing: there is no trace of answers yet"
    lines = [
        "",
        f"{'expected tok/s':16}{'decode':>8} {'prefill':>9} {'hits %':>7} {'read MiB/token':>14}",
        row("now", plan.now),
    ]
    if not plan.whole:
        lines += [
            row("memory + 25 %", plan.more_memory),
            row("disk x 2", plan.faster_disk),
            row("all in memory", plan.all_in_memory),
        ]
    lines += ["", _advice(plan)]
    disk = f"disk {costs.bandwidth / 1e9:.2f} GB/s, {1e3 * costs.expert_seconds:.2f} ms an expert"
    return [*lines, f"by {disk} ({seen}); {whose}"]


def _advice(plan: Plan) -> str:
    """What would help most."""
    if plan.whole:
        return "everything is in memory: only faster memory or more cores would help"
    gains: dict[str, Any] = {
        "more RAM (a quarter more slots)": plan.more_memory.decode / plan.now.decode,
        "a disk twice as fast": plan.faster_disk.decode / plan.now.decode,
    }
    best = max(gains, key=lambda name: gains[name])
    if gains[best] < 1.05:
        return "neither more RAM nor a faster disk would help much: the time goes into computing"
    return f"most would help: {best}, x {gains[best]:.2f}; RAM for all experts, x " + (
        f"{plan.all_in_memory.decode / plan.now.decode:.2f}"
    )
