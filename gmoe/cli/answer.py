"""An answer on the terminal: the text as it streams, and the figures after it."""

from collections.abc import Iterable
from typing import Any

import click


def write(events: Iterable[Any]) -> str:
    """Stream an answer to standard output; returns it."""
    pieces = []
    for event in events:
        pieces.append(event.text)
        click.echo(event.text, nl=False)
    click.echo()
    return "".join(pieces)


def figures(stats: dict[str, Any], loaded: float) -> str:
    """The lines of `--verbose`: Ollama's, and the experts'."""
    prompt, decode = stats["prompt_seconds"], stats["decode_seconds"]
    n_prompt, n_decode = stats["prompt_tokens"], stats["generated_tokens"]
    rows = [
        ("total duration", f"{loaded + prompt + decode:.3f}s"),
        ("load duration", f"{loaded:.3f}s"),
        ("prompt eval count", f"{n_prompt} token(s)"),
        ("prompt eval duration", f"{prompt:.3f}s"),
        ("prompt eval rate", f"{n_prompt / prompt if prompt else 0:.2f} tokens/s"),
        ("eval count", f"{n_decode} token(s)"),
        ("eval duration", f"{decode:.3f}s"),
        ("eval rate", f"{(n_decode - 1) / decode if decode else 0:.2f} tokens/s"),
    ]
    for tier in ("gpu", "host", "disk"):
        if tier in stats:
            row = stats[tier]
            rows.append(
                (f"experts in {tier}", f"{row['hits']} hits, {row['misses']} misses, {row['bytes_loaded']} bytes")
            )
    for name, row in stats["actions"].items():
        if row["count"]:
            rows.append((f"experts by {name}", f"{row['count']}, {row['mass']:.3f} of the routed weight"))
    return "\n".join(f"{name + ':':<22}{value}" for name, value in rows)
