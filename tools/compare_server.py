"""The same GGUF behind gmoe and behind llama.cpp's server for Python, in turn, in one run: tokens a second by clients.

    python -m tools.compare_server MODEL.gguf --clients 1,4,8 --tokens 64 --rounds 3 [--threads 2]

Each client sends one completion after another; answers do not end before their `--tokens`. A number is the median of
the rounds; the ratio is gmoe's over the peer's. Needs `pip install 'llama-cpp-python[server]'`.
"""

import argparse
import asyncio
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from gmoe.tokenizer.tokenizer import Tokenizer

NEVER = -100  # the bias of end tokens
WORDS = "the river and a house near old trees under the hill where nobody sleeps at night but everybody sings of rain"


@contextmanager
def gmoe_server(model: Path, threads: int, clients: int, context: int, home: Path) -> Iterator[str]:
    """gmoe's address until the block ends."""
    command = [str(Path(sys.executable).with_name("gmoe")), "serve", str(model), "--port", "0", "--keep-alive", "-1s"]
    command += ["--threads", str(threads), "--max-sequences", str(clients), "--context", str(context)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "GMOE_HOME": str(home)})
    assert process.stderr is not None
    try:
        found = re.search(r"http://\S+", process.stderr.readline())
        assert found, "gmoe does not start"
        yield found[0]
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def peer_server(model: Path, threads: int, context: int, port: int) -> Iterator[str]:
    """The peer's address until the block ends."""
    command = [sys.executable, "-W", "ignore", "-m", "llama_cpp.server", "--model", str(model), "--port", str(port)]
    command += ["--n_threads", str(threads), "--n_threads_batch", str(threads), "--n_ctx", str(context)]
    command += ["--verbose", "false", "--model_alias", model.stem]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            for _ in range(600):
                try:
                    if httpx.get(url + "/v1/models").status_code == 200:
                        break
                except httpx.TransportError:
                    assert process.poll() is None, "the peer does not start: pip install 'llama-cpp-python[server]'"
                    time.sleep(0.1)
            yield url
        finally:
            process.terminate()


async def rate(url: str, name: str, clients: int, tokens: int, answers: int, bias: dict[str, int]) -> float:
    """Tokens a second of so many clients at once, with so many answers each."""

    async def talk(number: int) -> int:
        total = 0
        async with httpx.AsyncClient(base_url=url, timeout=600) as client:
            for n in range(answers):
                prompt = f"Client {number} says for the {n}. time: {WORDS}"
                body = {"model": name, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "logit_bias": bias}
                response = await client.post("/v1/completions", json=body)
                response.raise_for_status()
                total += response.json()["usage"]["completion_tokens"]
        return total

    began = time.perf_counter()
    totals = await asyncio.gather(*(talk(number) for number in range(clients)))
    return sum(totals) / (time.perf_counter() - began)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--clients", default="1,4,8")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--answers", type=int, default=1, help="of each client, in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    numbers = [int(word) for word in given.clients.split(",")]
    context = 128 + given.tokens
    bias = {str(id): NEVER for id in Tokenizer.from_file(given.model).end_ids}
    rates: dict[tuple[str, int], list[float]] = {}
    with (
        tempfile.TemporaryDirectory() as home,
        gmoe_server(given.model, given.threads, max(numbers), context, Path(home)) as ours,
        peer_server(given.model, given.threads, context, 18435) as peer,
    ):
        servers = {"gmoe": ours, "llama.cpp": peer}
        for url in servers.values():
            asyncio.run(rate(url, given.model.stem, 1, 4, 1, bias))  # warm
        for _ in range(given.rounds):
            for clients in numbers:
                for name, url in servers.items():
                    one = asyncio.run(rate(url, given.model.stem, clients, given.tokens, given.answers, bias))
                    rates.setdefault((name, clients), []).append(one)
    print("| clients | gmoe tokens/s | llama-cpp-python server tokens/s | ratio |")
    print("|---|---|---|---|")
    for clients in numbers:
        mine, theirs = (statistics.median(rates[name, clients]) for name in servers)
        print(f"| {clients} | {mine:.1f} | {theirs:.1f} | {mine / theirs:.2f} |")


if __name__ == "__main__":
    main()
