"""The counters of a server in Prometheus' text format: llama-server's names, and the experts' own."""

from collections.abc import Iterable, Mapping
from typing import Any

from gmoe.server.host import ModelHost, added
from gmoe.server.ollama_models import experts

TOTALS = {
    "prompt_tokens": ("llamacpp:prompt_tokens_total", "Number of prompt tokens processed."),
    "prompt_seconds": ("llamacpp:prompt_seconds_total", "Prompt process time."),
    "generated_tokens": ("llamacpp:tokens_predicted_total", "Number of generation tokens processed."),
    "decode_seconds": ("llamacpp:tokens_predicted_seconds_total", "Predict process time."),
    "drafted_tokens": ("gmoe_drafted_tokens_total", "Number of tokens that were guessed and computed ahead."),
    "accepted_tokens": ("gmoe_accepted_tokens_total", "Number of them that were said."),
}
media = "text/plain; version=0.0.4; charset=utf-8"


def render(host: ModelHost) -> str:
    """All series; what an unloaded model had counted stays in the totals."""
    stats, sizes = dict(host.retired), dict[str, int]()
    for running in host.loaded:
        if running.llm is not None:
            name = running.name
            stats[name] = added(stats.get(name, {}), experts(running.llm))
            sizes[name] = sizes.get(name, 0) + running.entry.size
    lines: list[str] = []
    for key, (name, help) in TOTALS.items():
        lines += _series(name, "counter", help, [({}, sum(one.get(key, 0) for one in stats.values()))])
    for name, tokens, seconds in (
        ("llamacpp:prompt_tokens_seconds", "prompt_tokens", "prompt_seconds"),
        ("llamacpp:predicted_tokens_seconds", "generated_tokens", "decode_seconds"),
    ):
        total = sum(one.get(seconds, 0) for one in stats.values())
        rate = sum(one.get(tokens, 0) for one in stats.values()) / total if total else 0.0
        lines += _series(name, "gauge", "Average throughput in tokens/s.", [({}, rate)])
    busy = host.answering
    lines += _series("llamacpp:requests_processing", "gauge", "Number of requests processing.", [({}, busy)])
    deferred: list[tuple[dict[str, str], float]] = [({}, host.pending - busy)]
    lines += _series("llamacpp:requests_deferred", "gauge", "Number of requests deferred.", deferred)
    loaded = [({"model": name}, size) for name, size in sizes.items()]
    lines += _series("gmoe_model_bytes", "gauge", "Size of the models that are loaded.", loaded)
    return "\n".join([*lines, *_experts(stats)]) + "\n"


def _experts(stats: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
    """Every counter of a tier is a series by model and tier; actions, with what routers chose, are two."""
    by_tier: dict[str, list[tuple[dict[str, str], float]]] = {}
    counts: list[tuple[dict[str, str], float]] = []
    masses: list[tuple[dict[str, str], float]] = []
    for model, one in stats.items():
        for tier, counters in one.items():
            if tier in ("actions", "routed", "rerouted"):
                for action, numbers in (counters if tier == "actions" else {tier: counters}).items():
                    counts.append(({"model": model, "action": action}, numbers.get("count", 0)))
                    masses.append(({"model": model, "action": action}, numbers.get("mass", 0.0)))
            elif isinstance(counters, Mapping) and tier != "shares":  # which are no counters
                for name, value in counters.items():
                    if isinstance(value, int | float):
                        by_tier.setdefault(name, []).append(({"model": model, "tier": tier}, value))
    for name, rows in by_tier.items():
        yield from _series(f"gmoe_expert_{name}_total", "counter", f"Experts: {name.replace('_', ' ')}.", rows)
    yield from _series("gmoe_expert_actions_total", "counter", "Absent experts, by what was done about them.", counts)
    yield from _series("gmoe_expert_mass_total", "counter", "Routed weight, by what was done.", masses)


def _series(name: str, kind: str, help: str, rows: Iterable[tuple[dict[str, str], float]]) -> list[str]:
    lines = [f"# HELP {name} {help}", f"# TYPE {name} {kind}"]
    for labels, value in rows:
        inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
        lines.append(f"{name}{{{inside}}} {value:.9g}" if inside else f"{name} {value:.9g}")
    return lines


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
