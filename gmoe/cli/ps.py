"""`gmoe ps` and `gmoe stop`: the models that a running server has in memory."""

from datetime import UTC, datetime
from typing import Any

import click
import httpx

from gmoe.cli.library import human_bytes
from gmoe.cli.serve import address

UNITS = (("year", 31_536_000), ("month", 2_592_000), ("week", 604_800), ("day", 86_400), ("hour", 3600), ("minute", 60))
COLUMNS = ("NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL")
API_KEY = click.option("--api-key", help="The key that the server asks for.")


@click.command()
@click.argument("prefix", default="")
@API_KEY
def ps(prefix: str, api_key: str | None) -> None:
    """List running models."""
    rows: list[tuple[str, ...]] = [COLUMNS]
    for model in ask("GET", "/api/ps", None, api_key)["models"]:
        if model["name"].lower().startswith(prefix.lower()):
            rows.append(row(model, datetime.now(UTC)))
    widths = [max(len(cells[column]) for cells in rows) for column in range(len(COLUMNS))]
    for cells in rows:
        click.echo("".join(cell.ljust(width + 4) for cell, width in zip(cells, widths, strict=True)).rstrip())


@click.command()
@click.argument("name")
@API_KEY
def stop(name: str, api_key: str | None) -> None:
    """Stop a running model."""
    try:
        ask("POST", "/api/generate", {"model": name, "keep_alive": 0}, api_key)
    except LookupError:
        raise ValueError(f'couldn\'t find model "{name}" to stop') from None


def row(model: dict[str, Any], now: datetime) -> tuple[str, ...]:
    """A model in Ollama's words."""
    size, on_gpu = model["size"], model["size_vram"]
    if on_gpu <= 0:
        processor = "100% CPU"
    elif on_gpu >= size:
        processor = "100% GPU"
    else:
        share = round(100 * (size - on_gpu) / size)
        processor = f"{share}%/{100 - share}% CPU/GPU"
    until = until_of(datetime.fromisoformat(model["expires_at"]), now)
    if model.get("status") == "loading":
        until = "Loading..."
    elif model.get("stopping"):
        until = "Stopping..."
    return model["name"], model["digest"][:12], human_bytes(size), processor, str(model["context_length"]), until


def until_of(then: datetime, now: datetime) -> str:
    """How long from now: "4 minutes from now", "Forever"."""
    seconds = int((then - now).total_seconds())
    if seconds > 100 * UNITS[0][1]:
        return "Forever"
    if seconds < 1:
        return "Stopping..."
    if seconds < 60:
        return f"{seconds} second{'s' * (seconds != 1)} from now"
    word, count = next((word, seconds // unit) for word, unit in UNITS if seconds >= unit)
    return f"{count} {word}{'s' * (count != 1)} from now"


def ask(method: str, path: str, body: Any, api_key: str | None) -> Any:
    """A request to the server of GMOE_HOST; a refusal is a `ValueError`, a model that is not there a `LookupError`."""
    host, port = address(None, None)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        response = httpx.request(method, url + path, json=body, headers=headers, timeout=30)
    except httpx.HTTPError:
        raise ValueError(f"could not connect to a gmoe server at {url}; run 'gmoe serve' to start it") from None
    if response.status_code == 404:
        raise LookupError(path)
    if response.status_code != 200:
        raise ValueError(f"{url} refused: {_reason(response)}")
    return response.json()


def _reason(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return f"status {response.status_code}"
