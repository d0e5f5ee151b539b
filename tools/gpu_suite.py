"""All that needs a CUDA card, in one call: kernels checked compiled and timed, models timed beside llama.cpp; Markdown.

python -m tools.gpu_suite --prepare FOLDER     # with a package index: wheels and sources that a card without one needs
python -m tools.gpu_suite --prepare FOLDER --lacks gguf diskcache    # where the card's machine has the others
python -m tools.gpu_suite [--wheels FOLDER]    # with a card: installs from FOLDER, builds, checks, times
python -m tools.gpu_suite --parts kernels      # one part only: tune, kernels, models

What there is no time for within --minutes is left out, and the tables say so.
"""

import argparse
import datetime
import os
import platform
import shlex
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from tools.gpu_end_to_end import SHAPE, Apart, Clock, Sizes, link, model_file, tables
from tools.gpu_kernels import TABLES, kernels
from tools.gpu_tune import FORMATS, tuning

ROOT = Path(__file__).parents[1]
WHEELS = ("gguf", "nanobind", "scikit-build-core", "pathspec", "ninja", "cmake", "packaging", "pytest", "iniconfig")
WHEELS += ("pluggy", "pygments", "pytest-timeout", "jinja2", "markupsafe", "sentencepiece", "pyyaml", "tokenizers")
PEER = "llama-cpp-python==0.3.36"  # its source, which compiles with CUDA
PEER_NEEDS = ("typing-extensions", "diskcache")
PEER_LEAVES = ("/.git/", *(f"/vendor/llama.cpp/{part}/" for part in ("models", "docs", "benches", "media")))
TUNED_FOR = 80  # seconds
CHECKED_FOR = 150  # seconds
FOR_THE_MODELS = 150  # seconds: so many are left when llama.cpp's compiler is waited for no longer
CHECKS = ("card", "kernels_triton", "kernels_triton_step", "kernels_triton_router")
WORKERS = 8  # processes that compile at the same time
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux_2_12_x86_64")


def prepare(folder: Path, python: str, lacks: Sequence[str]) -> None:
    """Download what the card's machine lacks, and llama.cpp's source."""
    tags = [word for tag in PLATFORMS for word in ("--platform", tag)]
    run(
        *(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(folder)),
        *("--python-version", python, "--implementation", "cp", *tags, *lacks),
    )
    with tempfile.TemporaryDirectory() as scratch:
        run(*(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary=:all:", "-d", scratch, PEER))
        for source in Path(scratch).glob("*.tar.gz"):
            strip(source, folder / source.name)


def strip(source: Path, target: Path) -> None:
    """The same archive without what only people read: it must fit through narrow doors."""
    with tarfile.open(source) as old, tarfile.open(target, "w:gz") as new:
        for entry in old:
            if not any(part in f"/{entry.name}/" for part in PEER_LEAVES):
                new.addfile(entry, old.extractfile(entry) if entry.isfile() else None)


def run(*command: str) -> None:
    """A command whose failure ends the suite."""
    print("$", " ".join(command), file=sys.stderr, flush=True)
    subprocess.run(command, cwd=ROOT, check=True)


def install(*what: str) -> None:
    """By pip, without an index."""
    run(sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", *what)


def build_peer(wheels: Path, folder: Path, how: Sequence[str]) -> "subprocess.Popen[bytes] | None":
    """Begin to compile llama.cpp in a folder, beside whatever else happens; None where its source is not there.

    Only its library: a wheel of all that comes with it takes minutes more. Processes begun later find it.
    """
    sources = sorted(wheels.glob("llama_cpp_python-*.tar.gz"))
    if not sources:
        return None
    source = folder / sources[-1].name.removesuffix(".tar.gz")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(source), os.environ.get("PYTHONPATH"))))
    made = source / "made"
    steps = (
        ("tar", "-xzf", sources[-1], "-C", folder),
        ("cmake", "-S", source, "-B", made, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-DLLAVA_BUILD=off", *how),
        ("cmake", "--build", made, "--target", "llama"),
        ("sh", "-c", f"mkdir -p '{source}/llama_cpp/lib' && cp '{made}'/bin/lib*.so* '{source}/llama_cpp/lib/'"),
    )
    script = " && ".join(shlex.join(map(str, step)) for step in steps)
    print("$", script, file=sys.stderr, flush=True)
    path = os.pathsep.join((os.environ.get("PATH", ""), str(Path(sys.executable).parent)))  # where pip puts cmake
    return subprocess.Popen(["sh", "-c", script], stdout=subprocess.DEVNULL, env=os.environ | {"PATH": path})


def card_options() -> list[str]:
    """How llama.cpp is configured for this machine's card."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    return ["-DGGML_CUDA=on", f"-DCMAKE_CUDA_ARCHITECTURES={major}{minor}"]


def tune(clock: Clock, folder: Path) -> Iterator[str]:
    """Finds how kernels are launched best here and keeps it, so that what follows is timed with it."""
    import torch
    from gmoe.kernels.triton.tuned import FILE

    from gmoe.library.home import home

    yield "\n## How kernels are launched\n"
    yield from tuning(Clock(min(TUNED_FOR, clock.left())), home() / FILE, torch.cuda.get_device_name())


def models(clock: Clock, folder: Path) -> Iterator[str]:
    """The models' tables; their file lies in the folder then."""
    from gmoe.experts.device import open_device

    device = open_device("cuda")
    assert device is not None
    path = model_file(folder)
    yield f"\n## A model: {path.name}, {path.stat().st_size / 2**30:.1f} GiB\n"
    apart = Apart(path, Sizes())
    yield from tables(path, Sizes(), clock, link(device), SHAPE.layer, apart.ask)
    apart.close()


def timed(clock: Clock, folder: Path) -> Iterator[str]:
    """The kernels' tables, launched as was found best."""
    import torch
    from gmoe.kernels.triton import tuned

    from gmoe.library.home import home

    choices, said = tuned.read(home() / tuned.FILE, torch.cuda.get_device_name())
    yield from (f"\n{notice}." for notice in said)
    yield from kernels(clock, choices)


PARTS = {"tune": tune, "kernels": timed, "models": models}


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepare", type=Path, metavar="FOLDER")
    parser.add_argument("--python", default="3.12", help="of the card's machine, for --prepare")
    parser.add_argument("--lacks", nargs="+", default=[*WHEELS, *PEER_NEEDS], metavar="PACKAGE", help="for --prepare")
    parser.add_argument("--wheels", type=Path, metavar="FOLDER")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=8.5, help="after which nothing new is begun")
    parser.add_argument("--out", type=Path, help="also write the tables into this file")
    given = parser.parse_args(arguments)
    if given.prepare:
        return prepare(given.prepare, given.python, given.lacks)
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("Error: this machine has no CUDA device that torch can use")
    began, clock = time.monotonic(), Clock(60 * given.minutes)
    os.environ.pop("TRITON_INTERPRET", None)
    scratch = tempfile.TemporaryDirectory()
    folder, peer = Path(scratch.name), None
    if given.wheels:
        install(*map(str, sorted(given.wheels.glob("*.whl"))))
        peer = build_peer(given.wheels, folder, card_options()) if "models" in given.parts else None
        install("--no-build-isolation", "-e", ".")
    ahead = compile_ahead(given.parts, folder)
    said = checked(CHECKED_FOR)  # a failure is part of the answer, the times are another
    for process in ahead:
        finish(process, max(1.0, CHECKED_FOR - (time.monotonic() - began)))
    card = torch.cuda.get_device_name()
    versions = f"torch {torch.__version__}, triton {version('triton')}, Python {platform.python_version()}"
    say(
        given.out, f"# On a GPU\n\n{datetime.date.today()}, {card}, {versions}; medians.\n\n`python -m tools.gpu_suite`"
    )
    say(given.out, f"\nThe kernels' tests, compiled: {said}.")
    for name in sorted(given.parts, key=list(PARTS).index):
        if name == "models" and peer is not None and not finish(peer, max(1.0, clock.left() - FOR_THE_MODELS)):
            say(given.out, "\nllama.cpp did not compile here, or not in time.")
        for line in PARTS[name](clock, folder):
            say(given.out, line)
    scratch.cleanup()
    say(given.out, f"\nThe whole suite took {time.monotonic() - began:.0f} s.")
    sys.exit(said != "passed")


def compile_ahead(parts: list[str], folder: Path) -> "list[subprocess.Popen[bytes]]":
    """Begin to compile what will be timed, in processes beside one another: Triton keeps it on the disk."""
    work = [f"gpu_kernels.once({name!r})" for name in TABLES if "kernels" in parts]
    work += [f"gpu_tune.once({name!r})" for name in FORMATS if "tune" in parts]
    work += [f"gpu_end_to_end.once(Path({str(folder)!r}))"] if "models" in parts else []
    program = "from pathlib import Path; from tools import gpu_end_to_end, gpu_kernels, gpu_tune; "
    return [subprocess.Popen([sys.executable, "-c", program + one], cwd=ROOT) for one in work]


def finish(process: "subprocess.Popen[bytes]", seconds: float) -> bool:
    """Whether a process of ours ended well in so many seconds; else it is ended."""
    try:
        return not process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False


def checked(seconds: float) -> str:
    """Whether the kernels pass their tests, compiled, some at a time since the compiler takes most of it."""
    files = [f"tests/test_{part}.py" for part in CHECKS]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    listed = subprocess.run([*command, "--collect-only", *files], cwd=ROOT, capture_output=True, text=True).stdout
    tests = [line for line in listed.splitlines() if "::" in line]
    until = time.monotonic() + seconds
    running = [subprocess.Popen([*command, *tests[n::WORKERS]], cwd=ROOT) for n in range(min(WORKERS, len(tests)))]
    ended = [finish(process, max(1.0, until - time.monotonic())) for process in running]
    return "passed" if ended and all(ended) else "FAILED" if time.monotonic() < until else "FAILED or not finished"


def say(out: Path | None, line: str) -> None:
    """Print a line of the tables, and keep it: what is there stays where the suite is cut off."""
    print(line, flush=True)
    if out:
        with out.open("a") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    main()
