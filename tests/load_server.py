"""A server under load: `python -m tests.load_server [SECONDS] [MODEL.gguf]`.

First the tokens a second of one and of eight clients; then 32 clients that stream answers for SECONDS (180), each in a
loop of its own: no error, memory flat, and a fair order, which is measured as the answers of the luckiest client
over those of the unluckiest.
"""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

from tests.factory import Shape, write_model

CLIENTS = 32
TOKENS = 32
WARM_SHARE = 0.25  # of the time, after which memory must not grow any more
MOST_GROWTH = 0.05


def serve(model: Path, home: Path) -> tuple[subprocess.Popen[str], str]:
    """A server in a process of its own, and its address."""
    gmoe = Path(sys.executable).with_name("gmoe")
    command = [str(gmoe), "serve", str(model), "--port", "0", "--max-sequences", "8", "--context", "512"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "GMOE_HOME": str(home)})
    assert process.stderr is not None
    found = re.search(r"http://\S+", process.stderr.readline())
    assert found, process.stderr.read()
    return process, found[0]


async def answer(client: httpx.AsyncClient, name: str, prompt: str) -> tuple[int, float]:
    """The tokens of one streamed answer and the seconds until the first of them; an error raises."""
    body = {"model": name, "prompt": prompt, "stream": True, "n_predict": TOKENS, "ignore_eos": True}
    began, first, count = time.perf_counter(), 0.0, 0
    async with client.stream("POST", "/completion", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                chunk = json.loads(line[6:])
                assert "error" not in chunk, chunk
                first = first or time.perf_counter() - began
                count = chunk.get("tokens_predicted", count)
    assert count == TOKENS, count
    return count, first


async def rate(url: str, name: str, clients: int, seconds: float) -> float:
    """Tokens a second of so many clients, each with one answer after another."""
    end = time.perf_counter() + seconds

    async def talk(number: int) -> int:
        total = 0
        async with httpx.AsyncClient(base_url=url, timeout=120) as client:
            while time.perf_counter() < end:
                total += (await answer(client, name, f"client {number} says"))[0]
        return total

    began = time.perf_counter()
    totals = await asyncio.gather(*(talk(number) for number in range(clients)))
    return sum(totals) / (time.perf_counter() - began)


def memory(pid: int) -> int:
    """Bytes of memory that are the process's own."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no RssAnon")


async def soak(url: str, name: str, pid: int, seconds: float) -> tuple[list[int], list[int]]:
    """The answers of each client, and the memory of the server every second."""
    answers, sizes = [0] * CLIENTS, list[int]()
    end = time.perf_counter() + seconds

    async def talk(number: int) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=300) as client:
            while time.perf_counter() < end:
                await answer(client, name, f"client {number} says for the {answers[number]}. time")
                answers[number] += 1

    async def watch() -> None:
        while time.perf_counter() < end:
            sizes.append(memory(pid))
            await asyncio.sleep(1)

    await asyncio.gather(watch(), *(talk(number) for number in range(CLIENTS)))
    return answers, sizes


def main(seconds: float, model: Path | None) -> int:
    """Run all; 1 where a promise is broken."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        file = model or write_model(home / "tiny.gguf", shape=Shape(layer=4, expert=16, used=4), quant="Q8_0")
        process, url = serve(file, home)
        try:
            asyncio.run(rate(url, file.stem, 1, 2))  # warm
            one, eight = (asyncio.run(rate(url, file.stem, clients, 10)) for clients in (1, 8))
            print(f"1 client {one:.1f} tokens/s, 8 clients {eight:.1f} tokens/s: {eight / one:.2f} x", flush=True)
            answers, sizes = asyncio.run(soak(url, file.stem, process.pid, seconds))
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(20)
    warm = sizes[int(len(sizes) * WARM_SHARE) :]
    third = max(1, len(warm) // 3)
    before, after = sum(warm[:third]) / third, sum(warm[-third:]) / third
    growth = after / before - 1
    print(f"{CLIENTS} clients, {seconds:g} s: {sum(answers)} answers of {TOKENS} tokens, no error")
    print(f"order: {min(answers)} to {max(answers)} answers a client")
    print(f"memory: {before / 2**20:.1f} MiB, in the end {after / 2**20:.1f} MiB ({growth:+.1%})")
    kept = max(answers) <= min(answers) + max(2, min(answers) // 4) and growth < MOST_GROWTH and eight >= 2.5 * one
    print("all promises kept" if kept else "a promise is broken")
    return 0 if kept else 1


if __name__ == "__main__":
    paths = [Path(word) for word in sys.argv[2:3]]
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 180, paths[0] if paths else None))
