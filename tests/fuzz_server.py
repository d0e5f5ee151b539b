"""Requests from the server's OpenAPI description, right and wrong ones: `python -m tests.fuzz_server 5000 [SEED]`.

No answer may be a 500 or take longer than `SECONDS`, and the server must answer properly afterwards. Of the fields
that a right request may leave out each has at most three, so that many get past the first refusal. Pull and push are
left out: they would speak to whatever host a made-up name means.
"""

import collections
import sys
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode

from gmoe.options import RuntimeOptions
from tests.factory import write_model
from tests.live_server import Live, live_server

SECONDS = 30
REFUSALS = {501, 503, 504}
LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict")
OUTSIDE = ("/api/pull", "/api/push")


def shortened(body: Any) -> Any:
    """The same body with an answer of a few tokens, where it asks for more or for any number."""
    if isinstance(body, dict):
        for name in LENGTHS:
            if isinstance(body.get(name), int) and body[name] > 4 or name not in body and "messages" in body:
                body[name] = 4
        body.setdefault("n_predict", 4)
        if isinstance(body.get("options", {}), dict):
            body["options"] = {**body.get("options", {}), "num_predict": 4}
    return body


def thinned(body: Any, required: Collection[str]) -> Any:
    """The same body with three of the fields that it need not have."""
    if not isinstance(body, dict):
        return body
    free = sorted(name for name in body if name not in required)
    kept = {*required, *free[len(str(body)) % max(1, len(free) - 2) :][:3]}
    thin = {name: value for name, value in body.items() if name in kept}
    if "messages" in thin and len(str(body)) % 2:
        thin["messages"] = [{"role": "user", "content": "x"}]
    return thin


def fuzz(live: Live, number: int, start: int = 0) -> collections.Counter[tuple[str, int]]:
    """Send so many requests; statuses by path."""
    schema = schemathesis.openapi.from_dict(live.http.get("/openapi.json").json())
    operations = [one.ok() for one in schema.get_all_operations()]
    operations = [one for one in operations if one.path not in OUTSIDE]
    seen: collections.Counter[tuple[str, int]] = collections.Counter()
    with httpx.Client(base_url=live.url, timeout=SECONDS) as client:
        for operation in operations:
            for mode in GenerationMode:
                one(live, client, operation, mode, -(-number // (2 * len(operations))), start, seen)
    return seen


def one(live: Live, client: httpx.Client, operation: Any, mode: Any, number: int, start: int, seen: Any) -> None:
    """The requests of one operation, all right or all wrong ones."""

    body = next(iter(operation.definition.raw.get("requestBody", {}).get("content", {}).values()), {}).get("schema", {})
    kind = operation.schema.raw_schema["components"]["schemas"].get(body.get("$ref", "").rpartition("/")[2], {})
    required = {*kind.get("required", ()), "model", "messages", "prompt", "input"}

    @seed(start)
    @settings(
        max_examples=number,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def run(case: Any) -> None:
        asked = case.as_transport_kwargs(base_url=live.url)
        parts = ("params", "headers", "data", "json")
        sent = {key: asked[key] for key in parts if asked.get(key) is not None}
        if "json" in sent:
            wrong = mode == GenerationMode.NEGATIVE
            sent["json"] = shortened(sent["json"] if wrong else thinned(sent["json"], required))
        if "data" in sent:
            sent["content"] = sent.pop("data")
        headers = {name: value for name, value in dict(sent.pop("headers", {})).items() if name.lower() != "host"}
        try:
            response = client.request(asked["method"], asked["url"], headers=headers, **sent)
        except (httpx.InvalidURL, UnicodeEncodeError, TypeError, httpx.LocalProtocolError):
            return  # nothing was sent
        seen[operation.path, response.status_code] += 1
        assert response.status_code < 500 or response.status_code in REFUSALS, (asked, response.text)

    try:
        run()
    except Exception as error:
        if "Unsatisfiable" not in type(error).__name__:  # there is no wrong request to this one
            raise


def main(number: int, start: int = 0) -> None:
    """Fuzz a server on loopback with a tiny model and say what came of it."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        files = [write_model(home / "tiny.gguf")]
        with live_server(home, files, RuntimeOptions(context=64), default="tiny", seconds=SECONDS) as live:
            seen = fuzz(live, number, start)
            again = {"model": "tiny", "prompt": "still there?", "stream": False, "options": {"num_predict": 2}}
            assert live.http.post("/api/generate", json=again).json()["done"]
            assert live.service.host.pending == 0
    for path in sorted({path for path, _ in seen}):
        print(path, {status: count for (where, status), count in sorted(seen.items()) if where == path})
    print(f"{sum(seen.values())} requests in {time.monotonic() - began:.0f} s, no 500, no hang")


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:3] or ["5000"]))
