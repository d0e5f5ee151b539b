"""Chat templates against recorded prompts, against what templates use, and against what they must not do."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_tokenizers import byte_level

from gmoe.gguf.file import GGUFFile, UnsupportedModel
from gmoe.tokenizer import chat, sandbox
from gmoe.tokenizer.chat import ChatTemplate, TemplateError
from gmoe.tokenizer.thinking import think_values
from gmoe.tokenizer.tokenizer import Tokenizer

MODELS = sorted((Path(__file__).parents[2] / "shared" / "fixtures" / "open").glob("*.npz"))
USER = [{"role": "user", "content": "Hi"}]
KEY = "tokenizer.chat_template"


def rendered(source: str, messages: Any = USER, **more: Any) -> str:
    metadata = byte_level() | {KEY: source}
    return ChatTemplate.from_gguf(metadata, Tokenizer.from_gguf(metadata, "toy"), "toy").render(messages, **more)


@pytest.mark.skipif(not MODELS, reason="the shared fixtures are not there")
@pytest.mark.parametrize("path", MODELS or [Path("absent")], ids=lambda path: path.stem)
def test_model_goldens(path: Path) -> None:
    with GGUFFile.open(path.with_suffix(".gguf")) as file:
        tokenizer = Tokenizer.from_gguf(file.metadata, path.name)
        template = ChatTemplate.from_gguf(file.metadata, tokenizer, path.name)
    with np.load(path) as arrays:
        cases = json.loads(str(arrays["chat_json"]))
    assert cases and not template.fallback
    for case in cases:
        text = template.render(case["messages"], add_generation_prompt=case["add_generation_prompt"])
        assert text == case["text"]
        assert tokenizer.encode(text, add_special=False, parse_special=True) == case["ids"]


def test_a_file_without_a_template_gets_chatml_and_says_so() -> None:
    template = ChatTemplate.from_gguf(byte_level(), Tokenizer.from_gguf(byte_level(), "toy"), "toy")
    assert template.fallback
    messages = [{"role": "system", "content": "Be brief."}, *USER, {"role": "assistant", "content": None}]
    turns = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n"
    )
    assert template.render(messages, add_generation_prompt=False) == turns
    assert template.render(messages) == turns + "<|im_start|>assistant\n"


def test_keywords_tools_and_special_tokens_reach_the_template() -> None:
    source = (
        "{{ bos_token }}{{ tools[0].function.name if tools else 'none' }}"
        "{{ '/no_think' if enable_thinking is defined and not enable_thinking }}{{ eos_token }}"
    )
    assert rendered(source) == "<|endoftext|>none<|im_end|>"
    tools = [{"type": "function", "function": {"name": "weather"}}]
    assert rendered(source, tools=tools, enable_thinking=False) == "<|endoftext|>weather/no_think<|im_end|>"


def test_tool_use_template_is_taken_when_there_are_tools() -> None:
    metadata = byte_level() | {KEY: "plain", KEY + ".tool_use": "with tools"}
    template = ChatTemplate.from_gguf(metadata, Tokenizer.from_gguf(metadata, "toy"), "toy")
    assert template.render(USER) == "plain"
    assert template.render(USER, tools=[{"type": "function"}]) == "with tools"


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        ("{{ f.name }}{{ m.content }}{{ f.arguments | tojson }}", 'add{"a": "ü"}'),
        ("{{ f.name }}{{ m.content }}{{ f.arguments }}", 'add{"a": "ü"}'),
        ("{{ f.name + f.arguments }}", 'add{"a": "ü"}'),
        ("{% if m.content is none %}{{ f.name + f.arguments }}{% endif %}", 'add{"a": "ü"}'),
        ("{% if m.content is none %}{{ f.name }}{{ f.arguments | tojson }}{% endif %}", 'add{"a": "ü"}'),
        ("{{ f.arguments | length }}", "1"),
    ],
)
def test_calls_have_the_shape_that_their_template_shows(shown: str, text: str) -> None:
    body = "{% for c in m.tool_calls %}{% set f = c.function %}" + shown + "{% endfor %}"
    function = {"name": "add", "arguments": {"a": "ü"}}
    messages = [*USER, {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "function": function}]}]
    tools = [{"type": "function", "function": {"name": "add"}}]
    assert rendered("{% for m in messages %}" + body + "{% endfor %}", messages, tools=tools) == text
    assert function["arguments"] == {"a": "ü"}


def test_calls_that_no_shape_shows_are_left_as_they_are() -> None:
    messages = [{"role": "assistant", "content": "x", "tool_calls": [{"function": {"name": "add"}}]}]
    assert rendered("{{ messages[0].content }}", messages) == "x"
    with pytest.raises(TemplateError, match="no calls"):
        rendered("{{ raise_exception('no calls') }}", messages)


@pytest.mark.parametrize("key", [KEY, KEY + ".default"])
def test_a_template_that_is_no_text_is_named(key: str) -> None:
    metadata = byte_level() | {key: 5}
    with pytest.raises(UnsupportedModel, match=f"toy: {key}: must be text"):
        ChatTemplate.from_gguf(metadata, Tokenizer.from_gguf(metadata, "toy"), "toy")


def test_blocks_leave_no_blank_lines_and_loops_can_be_left() -> None:
    leave = "  {% if loop.index > 1 %}\n    {% break %}\n  {% endif %}\n"
    source = "{% for m in messages %}\n" + leave + "{{ m.content }}\n{% endfor %}"
    assert rendered(source, [*USER, *USER]) == "Hi\n"
    assert rendered("{% generation %}{{ messages[0].content }}{% endgeneration %}!") == "Hi!"
    assert rendered("{% for i in [] %}x{% else %}none{% endfor %}{{ [1, 2, 3] | sum }}") == "none6"


def test_tojson_keeps_order_letters_and_brackets() -> None:
    value = [{"z": "<é>", "a": [1, True, None]}]
    assert rendered("{{ messages | tojson }}", value) == '[{"z": "<é>", "a": [1, true, null]}]'
    assert rendered("{{ messages[0].a | tojson(indent=2) }}", value) == "[\n  1,\n  true,\n  null\n]"


def test_strftime_now_is_there() -> None:
    assert rendered("{{ strftime_now('%Y') }}") == time.strftime("%Y")


def again(step: str, first: Any = "aaaa") -> str:
    return f"{{% set ns = namespace(s={first!r}) %}}{{% for i in range(64) %}}{{% set ns.s = {step} %}}{{% endfor %}}"


def test_what_templates_do_is_done() -> None:
    for source, want in (
        ("{{ 7.5 % 2 }} {{ 7 % 4 }} {{ 2 ** 10 }} {{ 'ab' * 3 }} {{ [1] * 2 + [3] }}", "1.5 3 1024 ababab [1, 1, 3]"),
        ("{{ '%s is %d' % ('x', 5) }} {{ '**%s**' % 'b' }} {{ '%d%%'|format(5) }}", "x is 5 **b** 5%"),
        ("{{ '{} {a!r} {{}}'.format(1, a='b') }} {{ '{:>4}'.format(7) }}", "1 'b' {}    7"),
        ("{{ 'a-b'.replace('-', '+') }} {{ 'abab'|replace('a', 'c', 1) }} {{ ', '.join('ab') }}", "a+b cbab a, b"),
        ("{{ messages|map(attribute='role')|join('/') }} {{ [1, 2]|sum }} {{ 'a\nb'|indent(2) }}", "user 3 a\n  b"),
        ("{{ 1 ~ 'a' ~ none ~ [1, 'b'] }} {{ {'a': (1, 2)}.a }}", "1aNone[1, 'b'] (1, 2)"),
        ("{{ {'a': [1, messages[0].role]}|tojson(indent=2) }}", '{\n  "a": [\n    1,\n    "user"\n  ]\n}'),
        ("{{ {'b': 1, 'a': 2}|tojson(separators=(',', ':'), sort_keys=true) }}", '{"a":2,"b":1}'),
        ("{% for a, b in [(1, 2), (3, 4)] %}{{ a }}{{ b }}{% if (a, b) == (1, 2) %}!{% endif %}{% endfor %}", "12!34"),
        ("{% macro m(x=[1, 2]) %}{{ x|length }}{{ caller() if caller }}{% endmacro %}{{ m() }}"
         "{% call m() %}c{% endcall %}", "22c"),
        ("{% set ns = namespace(x=1) %}{% for i in range(3) %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}", "4"),
        ("{% set ns = namespace(ids=[], x=[]) %}{% for i in 'abc' %}{% set _ = ns.ids.append(i) %}{% endfor %}"
         "{{ ns.ids.pop(0) }}{{ ns.ids[-1] }}{{ ns.ids|length }}{{ ns.ids|join }}{{ ns.x }}", "ac2bc[]"),
    ):  # fmt: skip
        assert rendered(source) == want


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{% if %}", "Expected an expression"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% set ns = namespace(a=[]) %}{% set b = [ns.a] * 9 %}{% set _ = ns.a.append(1) %}{{ b|tojson }}", "_Queue"),
        (
            "{% set ns = namespace(a=[]) %}{% for i in range(64) %}{% set _ = ns.a.append('x' * 999999) %}{% endfor %}",
            "the result of append would be too large",
        ),
        ("{% set a = [] %}{% set _ = a.append(1) %}", "unsafe"),
        ("{% set ns = namespace(a=messages, b=[]) %}{% set _ = ns.a.append(ns.b.append(1)) %}", "unsafe"),
        ("{{ messages[0].content.center(10 ** 9) }}", "unsafe"),
        ("{% for i in range(10000000) %}x{% endfor %}", "Range too big"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% set x = 1 %}{% endfor %}{% endfor %}", "ran longer"),
        ("{% for i in range(99999) %}{{ 'xxxxxxxxxx' * 1000 }}{% endfor %}", "does not end"),
        ("{{ 'x' * 10000000000 }}", "too large"),
        ("{{ (10 ** 1000) ** 1000 }}", "too large"),
        ("{{ '%9999999999d' % 1 }}", "too large"),
        ("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", "recursion"),
        ("{{ lipsum(n=100000) }}", "undefined"),
        (again("ns.s + ns.s"), "the result of a . would be too large"),
        (again("ns.s ~ ns.s"), "the result of a ~ would be too large"),
        (again("[ns.s, ns.s]"), "the result of a list or mapping would be too large"),
        (again("{'a': ns.s, 'b': ns.s}"), "the result of a list or mapping would be too large"),
        (again("ns.s * ns.s", 10), "too large"),
        (again("ns.s|replace('a', 'aaaaaaaaaa')"), "the result of replace would be too large"),
        (again("ns.s.replace('a', 'aaaaaaaaaa')"), "the result of replace would be too large"),
        ("{{ ('x' * 100000).join(['a'] * 1000) }}", "the result of join would be too large"),
        ("{{ (['x' * 100000] * 200)|join(d='x' * 100000) }}", "the result of join would be too large"),
        (
            "{% set ns = namespace(s='aaaa') %}{% for i in range(64) %}{% set x %}{{ ns.s }}{{ ns.s }}{% endset %}"
            "{% set ns.s = x %}{% endfor %}",
            "the result of an output would be too large",
        ),
        (
            "{% set x %}{% for i in range(99999) %}{% for j in range(99999) %}"
            + "x" * 10000
            + "{% endfor %}{% endfor %}"
            "{% endset %}",
            "would fill the memory",
        ),
        ("{{ ('a\n' * 100000)|indent(99999999) }}", "the result of indent would be too large"),
        ("{{ '{:>999999999}'.format('a') }}", "the result of format would be too large"),
        ("{{ '{:{}}'.format('a', 999999999) }}", "the result of format would be too large"),
        ("{{ '%999999999d'|format(1) }}", "the result of format would be too large"),
        ("{{ [1]|tojson(indent=999999999) }}", "the result of tojson would be too large"),
        ("{{ range(10)|slice(99999999)|list }}", "No filter named 'slice'"),
        ("{{ 1e999|int }}", "inf"),
        ("{% for a in b %}" * 60 + "{% endfor %}" * 60, "too many statically nested blocks"),
        ("{{ messages[0].content + 1 }}", "str"),
    ],
)
def test_a_bad_template_is_refused_in_one_sentence(source: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "SECONDS", 0.5 if "longer" in words else 30)  # where time is not what it is about
    with pytest.raises(TemplateError, match=words) as refusal:
        rendered(source)
    assert str(refusal.value).startswith("toy: ") and "\n" not in str(refusal.value)
    assert isinstance(refusal.value, ValueError)


def test_half_a_surrogate_counts_as_the_replacement_character() -> None:
    source = "{% for m in messages %}{{ m.content }}{% endfor %}{{ '\\ud800' }}"
    assert (
        rendered(source, [{"role": "user", "content": "cut \ud83d, whole \ud83d\ude00"}])
        == "cut \ufffd, whole 😀\ufffd"
    )


def test_waiting_for_others_is_not_the_template_s_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "SECONDS", 0.2)
    slow = "{% for m in messages %}{{ strftime_now('') }}{{ m.content }}{% endfor %}"
    monkeypatch.setattr(chat.time, "strftime", lambda form: time.sleep(0.3))
    assert rendered(slow).startswith("None")


def test_a_template_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = byte_level() | {KEY: "{% for m in messages %}{{ m.content }}{% endfor %}"}
    template = ChatTemplate.from_gguf(metadata, Tokenizer.from_gguf(metadata, "toy"), "toy")
    assert template.render(USER) == "Hi"
    monkeypatch.setattr(template._environment, "from_string", None)
    assert template.render([*USER, *USER]) == "HiHi"


def test_thinking_has_a_name_in_each_template() -> None:
    on, off = think_values(True), think_values(False)
    names = ("enable_thinking", "thinking", "reasoning")
    assert think_values(None) == {} and all(on[name] is True and off[name] is False for name in names)
    assert (on["thinking_mode"], off["thinking_mode"]) == ("enabled", "disabled")
    assert think_values("max")["thinking_effort"] == "max" and think_values("max")["reasoning_effort"] == "high"
    assert "reasoning_effort" not in on
    assert think_values(True, "{% set reasoning_effort = 'no_think' %}")["reasoning_effort"] == "high"
