"""Train the demo model from scratch: `python -m tools.train_demo --preset cpu --out DIR`; run again to go on."""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
import torch.distributed as dist
from tokenizers import Tokenizer
from torch import Tensor

from tools.demo.corpus import DOMAINS, WEIGHTS, Packed, pack, token_lengths
from tools.demo.export import export
from tools.demo.fused import product_type
from tools.demo.model import Model, Shape
from tools.demo.muon import optimizers


@dataclass(frozen=True)
class Preset:
    """What one training run is; rates and steps are those of the stable phase of warm-up, stable, decay."""

    shape: Shape
    domain_bytes: int | None  # taken of each domain's train split; None: all
    batch: int  # sequences of n_ctx tokens a step
    micro: int  # of them at once
    steps: int
    warmup: int
    decay: int  # last steps, over which the rates fall to zero
    save_minutes: float
    muon_lr: float = 0.02
    adam_lr: float = 3e-3
    balance: float = 0.005
    shorter: int = 1  # before the decay each sequence is cut into so many: cheaper attention


PRESETS = {
    "gpu": Preset(Shape(n_ctx=1024, n_expert=24, n_expert_used=4), None, 256, 64, 2000, 40, 600, 2.0),
    "cpu": Preset(
        Shape(n_expert=32, n_expert_used=4, n_ff_exp=64),
        *(12_000_000, 8, 4, 4000, 40, 1000, 5.0),
        balance=0.01,
        shorter=2,
    ),
    "smoke": Preset(
        Shape(n_vocab=512, n_ctx=64, n_embd=64, n_layer=2, head_dim=16, n_expert=4, n_ff_exp=64),
        *(30_000, 8, 8, 40, 5, 20, 1.0),
    ),
}


def rate(step: int, warmup: int, decay_from: int, steps: int) -> float:
    """The share of the full learning rate at a step."""
    if step < warmup:
        return (step + 1) / warmup
    return min(1.0, (steps - step) / max(1, steps - decay_from))


def windows(data: Packed, n_ctx: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """n windows of n_ctx + 1 tokens, domains drawn by WEIGHTS, half of them from the start of a document."""
    rows = []
    for domain in rng.choice(len(DOMAINS), n, p=np.array(WEIGHTS) / sum(WEIGHTS)):
        first, end = data.span(domain)
        last = max(first, end - n_ctx - 1)
        if rng.random() < 0.5:
            mine = data.starts[np.searchsorted(data.domains, domain) : np.searchsorted(data.domains, domain, "right")]
            at = min(int(rng.choice(mine)), last)
        else:
            at = int(rng.integers(first, last + 1))
        rows.append(data.tokens[at : at + n_ctx + 1].astype(np.int64))
    return np.stack(rows)


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """torch.save that never leaves half a file under the name."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


class Training:
    """Model, optimizers and how far they are; everything a checkpoint holds.

    Of several ranks each holds all of it, computes its share of a step's micro batches and adds up the gradients.
    """

    def __init__(self, preset: Preset, data: Packed, device: str, seed: int, rank: int = 0, ranks: int = 1) -> None:
        torch.manual_seed(seed)
        self.preset, self.data, self.device, self.seed = preset, data, device, seed
        self.rank, self.ranks = rank, ranks
        self.model = Model(preset.shape).to(device)
        parameters = list(self.model.parameters())
        self.sums = torch.zeros(
            sum(p.numel() for p in parameters) + 3, device=device
        )  # gradients, loss, rate, wish to stop
        for parameter, part in zip(parameters, self.sums.split([p.numel() for p in parameters] + [3]), strict=False):
            parameter.grad = part.view_as(parameter)
        self.optimizers = optimizers(self.model, preset.muon_lr, preset.adam_lr)
        self.full_rates = [group["lr"] for o in self.optimizers for group in o.param_groups]
        self.step = 0
        self.curve: list[tuple[int, float]] = []  # tokens seen, nats a token

    def state(self) -> dict[str, Any]:
        """For torch.save; everything in it loads with weights_only=True."""
        return {
            "shape": asdict(self.preset.shape),
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self.step,
            "curve": self.curve,
            "seed": self.seed,
        }

    def load(self, path: Path) -> None:
        """Go on from a checkpoint. Raises ValueError when it is of another shape."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["shape"] != asdict(self.preset.shape):
            raise ValueError(f"{path}: the checkpoint has another shape than the preset; choose another --out")
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.curve, self.seed = state["step"], state["curve"], state["seed"]

    @torch.no_grad()
    def round(self) -> None:
        """Make every matrix one that F16 holds exactly, so that the file says what the network says."""
        for parameter in self.model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(parameter.half().float())

    def loss(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """tokens [S, n_ctx + 1] -> nats a token, and the router's balance loss."""
        kind = product_type() if self.device == "cpu" else torch.bfloat16
        with torch.autocast(self.device, torch.bfloat16, enabled=kind == torch.bfloat16):
            return self.model.loss(tokens[:, :-1], tokens[:, 1:])

    def advance(self, share: float, shorter: int = 1, stop: bool = False) -> tuple[float, bool]:
        """One step at `share` of the full rates, its sequences cut into `shorter` parts.

        The batch depends on seed and step only; the first rank's `share` counts. Returns the mean loss and whether any
        rank wishes to stop.
        """
        preset = self.preset
        rng = np.random.default_rng((self.seed, self.step))
        self.sums.zero_()
        for number in range(preset.batch // preset.micro):
            batch = windows(self.data, preset.shape.n_ctx // shorter, preset.micro * shorter, rng)
            if number % self.ranks != self.rank:
                continue
            loss, balance = self.loss(torch.from_numpy(batch).to(self.device))
            ((loss + preset.balance * balance) * preset.micro / preset.batch).backward()
            self.sums[-3] += loss.detach() * preset.micro / preset.batch
        self.sums[-2], self.sums[-1] = share if self.rank == 0 else 0.0, float(stop)
        if self.ranks > 1:
            dist.all_reduce(self.sums)
        total, share, stops = self.sums[-3:].tolist()
        groups = [group for o in self.optimizers for group in o.param_groups]
        for group, full in zip(groups, self.full_rates, strict=True):
            group["lr"] = full * share
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        before = self.curve[-1][0] if self.curve else 0
        self.curve.append((before + preset.batch * preset.shape.n_ctx, total))
        return total, stops > 0


@torch.no_grad()
def bits_per_byte(training: Training, test: Packed, lengths: np.ndarray, tokens: int = 16_384) -> dict[str, float]:
    """Per domain, for the first `tokens` tokens or so of its test split; control tokens cost bits, hold no bytes."""
    n_ctx = training.preset.shape.n_ctx
    result = {}
    for number, domain in enumerate(DOMAINS):
        first, end = test.span(number)
        n = min(max(1, tokens // n_ctx), (end - first - 1) // n_ctx)
        nats, size = 0.0, 0
        for at in range(first, first + n * n_ctx, n_ctx):
            window = test.tokens[at : at + n_ctx + 1].astype(np.int64)
            nats += training.loss(torch.from_numpy(window)[None].to(training.device))[0].item() * n_ctx
            size += int(lengths[window[1:]].sum())
        result[domain] = nats / math.log(2) / size
    return result


def plot(curve: list[tuple[int, float]], path: Path) -> None:
    """The loss curve as a picture, smoothed over 20 steps."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    seen, losses = np.array(curve).T
    width = min(20, len(losses))
    figure, axes = pyplot.subplots(figsize=(7, 4))
    axes.plot(seen[width - 1 :] / 1e6, np.convolve(losses, np.ones(width) / width, "valid"))
    axes.set(xlabel="million tokens", ylabel="nats a token", title="training loss")
    figure.savefig(path, dpi=100, bbox_inches="tight")
    pyplot.close(figure)


def finish(training: Training, test: Packed, tokenizer: Tokenizer, out: Path, types: list[str]) -> None:
    """Round, keep as finished.pt, measure, plot and export what has been trained so far."""
    training.round()
    save_atomically(training.state(), out / "finished.pt")
    measured = bits_per_byte(training, test, token_lengths(tokenizer))
    shape = training.preset.shape
    record = {
        "seed": training.seed,
        "steps": training.step,
        "tokens": training.curve[-1][0],
        "loss": training.curve[-1][1],
        "parameters": sum(p.numel() for p in training.model.parameters()),
        "bits_per_byte": {domain: round(bits, 3) for domain, bits in measured.items()},
        "shape": asdict(shape),
    }
    (out / "result.json").write_text(json.dumps(record, indent=1) + "\n")
    plot(training.curve, out / "loss.png")
    for name in types:
        export(training.model.state_dict(), shape, tokenizer, out / f"demo-{name}.gguf", name)
    print(json.dumps(record["bits_per_byte"]), file=sys.stderr)


def train(training: Training, steps: int, decay_from: int, minutes: float, save_to: Path, by_time: float = 0.0) -> None:
    """Advance to `steps` or for `minutes`, saving on the way and at the end.

    With `by_time` the rates fall from that share to zero over the minutes, whatever number of steps they allow.
    """
    preset = training.preset
    began = saved = time.monotonic()
    first, stop, leads = training.step, False, training.rank == 0
    while training.step < steps and not stop:
        passed = (time.monotonic() - began) / 60
        shorter = preset.shorter if training.step < decay_from else 1
        share = (
            max(0.0, by_time * (1 - passed / minutes))
            if by_time
            else rate(training.step, preset.warmup, decay_from, steps)
        )
        loss, stop = training.advance(share, shorter, leads and passed > minutes)
        now = time.monotonic()
        if leads and (training.step % 10 == 0 or training.step - first < 3 or training.step == steps):
            speed = (training.step - first) * preset.batch * preset.shape.n_ctx / (now - began)
            of = "" if by_time else f"/{steps}"
            print(
                f"step {training.step}{of}  {training.curve[-1][0] / 1e6:.2f} M tokens  loss {loss:.3f}"
                f"  {speed:.0f} tokens/s  {(now - began) / 60:.1f} min",
                file=sys.stderr,
                flush=True,
            )
        if leads and now - saved > 60 * preset.save_minutes:
            save_atomically(training.state(), save_to)
            saved = now
    if leads:
        save_atomically(training.state(), save_to)


def join(rank: int, ranks: int, rendezvous: Path, arguments: list[str]) -> list[subprocess.Popen[bytes]]:
    """Meet the other ranks; the first one starts them. One thread each: two in one process wait for each other."""
    torch.set_num_threads(1)
    others = []
    if rank == 0:
        rendezvous.unlink(missing_ok=True)
        command = [sys.executable, "-m", "tools.train_demo", *arguments, "--rank"]
        others = [subprocess.Popen([*command, str(other)]) for other in range(1, ranks)]
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=rendezvous.absolute().as_uri(), rank=rank, world_size=ranks)
    return others


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--out", type=Path, required=True, help="checkpoints, packed corpus, curves and GGUF files")
    parser.add_argument("--corpus", type=Path, default=Path(__file__).parents[2] / "shared" / "corpus")
    parser.add_argument("--resume", type=Path, help="a checkpoint; without it OUT/checkpoint.pt, if it is there")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after this long, to go on another time")
    parser.add_argument("--finish", type=int, metavar="STEPS", help="only decay to zero over STEPS more, and export")
    parser.add_argument("--finish-minutes", type=float, metavar="N", help="the same over N minutes")
    parser.add_argument("--peak", type=float, default=1.0, help="share of the full rates where --finish-minutes begins")
    parser.add_argument("--types", nargs="*", default=["F16", "Q8_0", "Q4_K_M"], help="what to export")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1, help="share each step; each uses one thread")
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    preset, device = PRESETS[given.preset], "cuda" if torch.cuda.is_available() else "cpu"
    packed = given.out / "corpus"
    pack(given.corpus, packed, preset.shape.n_vocab, preset.domain_bytes)
    others = []
    if given.processes > 1:
        others = join(given.rank, given.processes, given.out / "rendezvous", arguments or sys.argv[1:])
    training = Training(preset, Packed.open(packed, "train"), device, given.seed, given.rank, given.processes)
    checkpoint = given.out / "checkpoint.pt"
    resumed = given.resume or (checkpoint if checkpoint.exists() else None)
    if resumed:
        training.load(resumed)
    if given.finish_minutes is not None:
        train(training, sys.maxsize, training.step, given.finish_minutes, given.out / "finished.pt", given.peak)
    elif given.finish is None:
        train(training, preset.steps, preset.steps - preset.decay, given.minutes, checkpoint)
    else:
        decay_from = training.step
        train(training, decay_from + given.finish, decay_from, given.minutes, given.out / "finished.pt")
    if given.processes > 1:
        dist.destroy_process_group()
    if given.rank > 0:
        return
    for other in others:
        other.wait()
    tokenizer = Tokenizer.from_file(str(packed / "tokenizer.json"))
    finish(training, Packed.open(packed, "test"), tokenizer, given.out, given.types)


if __name__ == "__main__":
    main()
