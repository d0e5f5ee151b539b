"""SamplingParams: its defaults, and what it refuses."""

import dataclasses
import subprocess
import sys

import pytest

from gmoe.engine.sampling import SAMPLERS, SamplingParams


def test_defaults_are_ollamas():
    p = SamplingParams()
    assert (p.temperature, p.top_k, p.top_p, p.min_p, p.typical_p) == (0.8, 40, 0.9, 0.0, 1.0)
    assert (p.repeat_last_n, p.repeat_penalty, p.presence_penalty, p.frequency_penalty) == (64, 1.0, 0.0, 0.0)
    assert (p.dry_multiplier, p.xtc_probability, p.top_n_sigma, p.mirostat) == (0.0, 0.0, -1.0, 0)
    assert (p.max_tokens, p.seed, p.stop, p.logit_bias, p.logprobs) == (None, None, (), {}, None)


@pytest.mark.parametrize(
    "field, value, says",
    [
        ("temperature", float("nan"), "temperature is nan; it must be a finite number"),
        ("temperature", "hot", "temperature is 'hot'; it must be a finite number"),
        ("top_k", -1, "top_k is -1; it must be at least 0"),
        ("top_k", 1.5, "top_k is 1.5; it must be an integer"),
        ("top_k", None, "top_k is None; it must be an integer"),
        ("top_p", 1.1, "top_p is 1.1; it must be between 0 and 1"),
        ("min_p", -0.1, "min_p is -0.1; it must be between 0 and 1"),
        ("typical_p", 2, "typical_p is 2; it must be between 0 and 1"),
        ("repeat_last_n", -2, "repeat_last_n is -2; it must be at least -1"),
        ("repeat_penalty", 0, "repeat_penalty is 0; it must be at least 1e-06"),
        ("presence_penalty", float("inf"), "presence_penalty is inf; it must be a finite number"),
        ("frequency_penalty", True, "frequency_penalty is True; it must be a finite number"),
        ("temperature", 10**400, "temperature must be between -1.79769e+308 and 1.79769e+308"),
        ("seed", -(10**400), "seed must be between -1.79769e+308 and 1.79769e+308"),
        ("seed", 0.5, "seed is 0.5; it must be an integer"),
        ("max_tokens", 0, "max_tokens is 0; it must be at least 1"),
        ("logprobs", 1001, "logprobs is 1001; it must be between 0 and 1000"),
        ("stop", "x", "stop must be a list of texts, none of them empty"),
        ("stop", ("a", ""), "stop must be a list of texts, none of them empty"),
        ("stop", None, "stop must be a list of texts, none of them empty"),
        ("logit_bias", None, "logit_bias is None; it must map token ids to numbers"),
        ("logit_bias", [(5, 1.0)], "logit_bias is [(5, 1.0)]; it must map token ids to numbers"),
        ("logit_bias", {"5": 1.0}, "logit_bias has '5': 1.0; it maps token ids to numbers"),
        ("logit_bias", {5: float("nan")}, "logit_bias has 5: nan; it maps token ids to numbers"),
        ("logit_bias", {5: 10**400}, f"logit_bias has 5: {10**400}; it maps token ids to numbers"),
        ("dry_sequence_breakers", "\n", "dry_sequence_breakers must be a list of texts, none of them empty"),
        ("samplers", 5, f"samplers has 5; there are {', '.join(SAMPLERS)}"),
        ("dry_base", 0.5, "dry_base is 0.5; it must be at least 1"),
        ("xtc_probability", 2, "xtc_probability is 2; it must be between 0 and 1"),
        ("mirostat", 3, "mirostat is 3; it must be between 0 and 2"),
        ("grammar", " ", "grammar is ' '; it must be text"),
        ("grammar_after", 3, "grammar_after is 3; it must be text"),
        ("json_schema", [], 'json_schema is []; it must be a JSON schema, or "json" for any JSON object'),
        ("json_schema", "{", "json_schema is '{'; it must be a JSON schema, or \"json\" for any JSON object"),
    ],
)
def test_refuses_in_one_sentence(field, value, says):
    with pytest.raises(ValueError) as caught:
        SamplingParams(**{field: value})
    assert str(caught.value) == says


def test_schemas():
    assert SamplingParams(json_schema={"type": "string"}).schema == {"type": "string"}
    assert SamplingParams(json_schema='{"type": "string"}').schema == {"type": "string"}
    assert SamplingParams(json_schema=True).schema == SamplingParams(json_schema="json").schema == {"type": "object"}
    assert SamplingParams().schema is SamplingParams(json_schema=False).schema is None
    with pytest.raises(ValueError, match="both given"):
        SamplingParams(grammar='root ::= "a"', json_schema=True)


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SamplingParams().top_k = 3  # type: ignore[misc]


def test_needs_no_torch():
    code = "import sys, gmoe.engine.sampling; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
