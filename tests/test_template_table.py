"""Twenty prompt formats, each as a Go template and as jinja, over four conversations: both write what Python does."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from toy_tokenizers import byte_level

from gmoe.tokenizer.chat import ChatTemplate
from gmoe.tokenizer.gochat import GoChatTemplate
from gmoe.tokenizer.tokenizer import Tokenizer

Messages = list[dict[str, str]]
USER = {"role": "user", "content": "Hello, <how> are you?"}
ANSWER = {"role": "assistant", "content": 'I\'m "doing" great.\n{{ }}'}
AGAIN = {"role": "user", "content": "I'd like to show off 你好!"}
SYSTEM = {"role": "system", "content": "You are a helpful assistant."}
CONVERSATIONS = {
    "user": [USER],
    "user-assistant-user": [USER, ANSWER, AGAIN],
    "system-user": [SYSTEM, USER],
    "system-user-assistant-user": [SYSTEM, USER, ANSWER, AGAIN],
}


class Format(NamedTuple):
    """`turns` writes a message by its role; `opening` opens the answer; both are the format in plain Python."""

    name: str
    go: str
    jinja: str
    turns: dict[str, str]  # with {} for the content
    opening: str = ""
    begin: str = ""


def by_role(go_names: dict[str, str]) -> str:
    """The Go template that writes every message by its role."""
    cases = [f'{{{{ if eq .Role "{role}" }}}}{text}{{{{ end }}}}' for role, text in go_names.items()]
    return "{{ range .Messages }}" + "".join(cases) + "{{ end }}"


def plain(name: str, turns: dict[str, str], opening: str, begin: str = "") -> Format:
    """A format that writes message by message."""
    go = begin + by_role({role: text.replace("{}", "{{ .Content }}") for role, text in turns.items()}) + opening
    cases = [
        f"{{%- if message.role == '{role}' -%}}{{{{ {text!r}.replace('{{}}', message.content) }}}}{{%- endif -%}}"
        for role, text in turns.items()
    ]
    jinja = "{%- for message in messages -%}" + "".join(cases) + "{%- endfor -%}{{ " + repr(opening) + " }}"
    return Format(name, go, "{{ " + repr(begin) + " }}" + jinja, turns, opening, begin)


def im(role: str) -> str:
    return f"<|im_start|>{role}\n{{}}<|im_end|>\n"


def three(system: str, user: str, assistant: str) -> dict[str, str]:
    return {"system": system, "user": user, "assistant": assistant}


LLAMA3 = {
    role: f"<|start_header_id|>{role}<|end_header_id|>\n\n{{}}<|eot_id|>" for role in ("system", "user", "assistant")
}
COHERE = {
    role: f"<|START_OF_TURN_TOKEN|><|{word}_TOKEN|>{{}}<|END_OF_TURN_TOKEN|>"
    for role, word in (("system", "SYSTEM"), ("user", "USER"), ("assistant", "CHATBOT"))
}
GRANITE = {
    role: f"<|start_of_role|>{role}<|end_of_role|>{{}}<|end_of_text|>\n" for role in ("system", "user", "assistant")
}
FORMATS = [
    plain("chatml", three(im("system"), im("user"), im("assistant")), "<|im_start|>assistant\n"),
    plain("llama3", LLAMA3, "<|start_header_id|>assistant<|end_header_id|>\n\n", "<|begin_of_text|>"),
    plain("mistral", three("{}\n\n", "[INST] {}[/INST]", " {}</s>"), ""),
    plain(
        "gemma",
        three(
            "<start_of_turn>user\n{}<end_of_turn>\n",
            "<start_of_turn>user\n{}<end_of_turn>\n",
            "<start_of_turn>model\n{}<end_of_turn>\n",
        ),
        "<start_of_turn>model\n",
    ),
    plain(
        "phi3",
        three("<|system|>\n{}<|end|>\n", "<|user|>\n{}<|end|>\n", "<|assistant|>\n{}<|end|>\n"),
        "<|assistant|>\n",
    ),
    plain("zephyr", three("<|system|>\n{}</s>\n", "<|user|>\n{}</s>\n", "<|assistant|>\n{}</s>\n"), "<|assistant|>\n"),
    plain("alpaca", three("{}\n\n", "### Instruction:\n{}\n\n", "### Response:\n{}\n\n"), "### Response:\n"),
    plain("vicuna", three("{} ", "USER: {} ", "ASSISTANT: {}</s>"), "ASSISTANT:"),
    plain("granite", GRANITE, "<|start_of_role|>assistant<|end_of_role|>"),
    plain("command-r", COHERE, "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>", "<BOS_TOKEN>"),
    plain("deepseek", three("{}", "<｜User｜>{}", "<｜Assistant｜>{}<｜end▁of▁sentence｜>"), "<｜Assistant｜>"),
    plain("glm4", three("<|system|>\n{}", "<|user|>\n{}", "<|assistant|>\n{}"), "<|assistant|>", "[gMASK]<sop>"),
    plain(
        "solar", three("### System:\n{}\n\n", "### User:\n{}\n\n", "### Assistant:\n{}</s>\n\n"), "### Assistant:\n"
    ),
    plain(
        "openchat",
        three(
            "{}<|end_of_turn|>",
            "GPT4 Correct User: {}<|end_of_turn|>",
            "GPT4 Correct Assistant: {}<|end_of_turn|>",
        ),
        "GPT4 Correct Assistant:",
    ),
    plain("falcon", three("System: {}\n", "User: {}\n", "Falcon: {}\n"), "Falcon:"),
    plain("magicoder", three("{}\n\n", "@@ Instruction\n{}\n\n", "@@ Response\n{}\n\n"), "@@ Response\n"),
    plain(
        "codellama-70b",
        three("Source: system\n\n {} <step> ", "Source: user\n\n {} <step> ", "Source: assistant\n\n {} <step> "),
        "Source: assistant\nDestination: user\n\n ",
    ),
    plain("minimax", three("]~b]system\n{}[e~[\n", "]~b]user\n{}[e~[\n", "]~b]ai\n{}[e~[\n"), "]~b]ai\n", "]~!b["),
    plain("kimi", {r: f"<|im_{r}|>{r}<|im_middle|>{{}}<|im_end|>" for r in ("system", "user", "assistant")},
          "<|im_assistant|>assistant<|im_middle|>"),
    plain("harmony", three(
        "<|start|>developer<|message|># Instructions\n\n{}<|end|>", "<|start|>user<|message|>{}<|end|>",
        "<|start|>assistant<|channel|>final<|message|>{}<|end|>"), "<|start|>assistant"),
]  # fmt: skip
# The older manner: one round of system, prompt and answer, written as often as there are rounds.
ROUNDS: list[tuple[str, str, Callable[[str, str, str], str], str]] = [
    (
        "chatml",
        "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}{{ if .Prompt }}<|im_start|>user\n"
        "{{ .Prompt }}<|im_end|>\n{{ end }}<|im_start|>assistant\n{{ .Response }}<|im_end|>\n",
        lambda s, p, r: (
            (im("system").format(s) if s else "") + im("user").format(p) + (im("assistant").format(r))
        ),
        "<|im_end|>\n",
    ),
    (
        "llama2",
        "[INST] {{ if .System }}<<SYS>>\n{{ .System }}\n<</SYS>>\n\n{{ end }}{{ .Prompt }} [/INST] {{ .Response }}</s>",
        lambda s, p, r: "[INST] " + (f"<<SYS>>\n{s}\n<</SYS>>\n\n" if s else "") + f"{p} [/INST] {r}</s>",
        "</s>",
    ),
    (
        "alpaca, trimmed",
        "{{ .System }}\n\n{{- if .Prompt }}\n### Instruction:\n{{ .Prompt }}\n{{- end }}\n\n### Response:\n"
        "{{ .Response }}\n",
        lambda s, p, r: f"{s}\n### Instruction:\n{p}\n\n### Response:\n{r}\n",
        "\n",
    ),
    (
        "without an answer",
        "{{ with .System }}{{ . }}|{{ end }}Q: {{ .Prompt }} A: ",
        lambda s, p, r: f"{s + '|' if s else ''}Q: {p} A: {r}",
        "",
    ),
]  # fmt: skip


def jinja(source: str) -> ChatTemplate:
    return ChatTemplate(source, Tokenizer.from_gguf(byte_level(), "toy"), "toy")


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_both_languages_write_the_format(form: Format, conversation: str) -> None:
    messages = CONVERSATIONS[conversation]
    wanted = form.begin + "".join(form.turns[m["role"]].replace("{}", m["content"]) for m in messages) + form.opening
    assert GoChatTemplate(form.go).render(messages) == wanted
    assert jinja(form.jinja).render(messages) == wanted


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize(("name", "go", "round_of", "end"), ROUNDS)
def test_rounds_are_written_one_after_another(
    name: str, go: str, round_of: Callable[[str, str, str], str], end: str, conversation: str
) -> None:
    messages = CONVERSATIONS[conversation]
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    rest = messages[bool(system) :]
    rounds = [
        round_of(system * (n == 0), rest[n]["content"], rest[n + 1]["content"] if n + 1 < len(rest) else "")
        for n in range(0, len(rest), 2)
    ]
    assert GoChatTemplate(go).render(messages) == "".join(rounds).removesuffix(end)


PARAMETERS = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer", "description": "first"}}}
TOOL = {"type": "function", "function": {"name": "add", "description": "Adds", "parameters": PARAMETERS}}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}]}
RESULT = {"role": "tool", "content": "2", "tool_name": "add", "tool_call_id": "x"}
KINDS: list[tuple[str, list[dict[str, Any]], list[Any], dict[str, Any], str]] = [
    ("{{ range .Messages }}{{ .Role }};{{ end }}", [USER, AGAIN, ANSWER, USER], [], {}, "user;assistant;user;"),
    (
        "{{ range .Messages }}{{ .Content }}|{{ end }}",
        [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
        [],
        {},
        "a\n\nb|",
    ),
    (
        "{{ .System }}#{{ range .Messages }}{{ .Role }};{{ end }}",
        [{"role": "system", "content": "x"}, USER, {"role": "system", "content": "y"}, AGAIN],
        [],
        {},
        "x\n\ny#system;user;system;user;",
    ),
    (
        "{{ if .Tools }}{{ range .Tools }}{{ json . }}{{ end }}{{ end }}{{ range .Messages }}{{ end }}",
        [USER],
        [TOOL],
        {},
        '{"type":"function","function":{"name":"add","description":"Adds","parameters":{"type":"object",'
        '"required":["a"],"properties":{"a":{"type":"integer","description":"first"}}}}}',
    ),
    ("{{ if .Tools }}T{{ else }}none{{ end }}{{ range .Messages }}{{ end }}", [USER], [], {}, "none"),
    (
        "{{ range .Tools }}{{ .Function.Name }}:{{ range $k, $v := .Function.Parameters.Properties }}{{ $k }} "
        "{{ $v.Type }}{{ end }}{{ range .Function.Parameters.Required }} !{{ . }}{{ end }}{{ end }}"
        "{{ range .Messages }}{{ end }}",
        [USER],
        [TOOL],
        {},
        "add:a integer !a",
    ),
    (
        "{{ range .Messages }}{{ if .ToolCalls }}{{ range .ToolCalls }}{{ .Function.Name }}"
        "({{ json .Function.Arguments }}){{ end }}"
        '{{ else if eq .Role "tool" }}={{ .Content }} {{ .ToolName }} {{ .ToolCallID }}{{ end }}{{ end }}',
        [USER, CALL, RESULT],
        [TOOL],
        {},
        'add({"a":1})=2 add x',
    ),
    (
        "{{ range .Messages }}{{ with .Thinking }}<think>{{ . }}</think>{{ end }}{{ .Content }}{{ end }}",
        [{"role": "assistant", "content": "b", "thinking": "a"}],
        [],
        {},
        "<think>a</think>b",
    ),
    (
        "{{ range .Messages }}{{ end }}{{ if and $.IsThinkSet (not .Think) }}/no_think{{ end }}",
        [USER],
        [],
        {"enable_thinking": False},
        "/no_think",
    ),
    ("{{ range .Messages }}{{ end }}{{ .IsThinkSet }}{{ .ThinkLevel }}", [USER], [], {}, "false"),
    (
        "{{ range .Messages }}{{ end }}{{ if .Think }}{{ .ThinkLevel }}{{ end }}",
        [USER],
        [],
        {"enable_thinking": True, "reasoning_effort": "high"},
        "high",
    ),
    (
        "{{ $n := len .Messages }}{{ range $i, $m := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
        "{{ if $last }}LAST{{ end }}{{ end }}{{ $n }}",
        [USER, ANSWER, AGAIN],
        [],
        {},
        "LAST3",
    ),
    (
        '{{- range $i, $_ := .Messages }}\n{{- if eq .Role "user" }}\n{{ .Content }}\n{{- end }}\n{{- end }}',
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
        [],
        {},
        "\na\nc",
    ),
]


@pytest.mark.parametrize(("go", "messages", "tools", "values", "wanted"), KINDS)
def test_kinds(go: str, messages: list[dict[str, Any]], tools: list[Any], values: dict[str, Any], wanted: str) -> None:
    assert GoChatTemplate(go).render(messages, tools, **values) == wanted


def test_dates(monkeypatch: pytest.MonkeyPatch) -> None:
    text = GoChatTemplate("{{ currentDate }}{{ yesterdayDate }}{{ range .Messages }}{{ end }}").render([USER])
    assert len(text) == 20 and text[:10] > text[10:]
