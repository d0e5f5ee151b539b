"""What a conversation that is too long loses: as few of its oldest messages as need be."""

import random
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from toy_tokenizers import byte_level

from gmoe.library.modelfile import Command, Modelfile
from gmoe.llm import LLM
from gmoe.server.ask import Ask, Refused
from gmoe.server.catalog import Entry
from gmoe.server.models import capabilities
from gmoe.server.prompt import prompt_of
from gmoe.tokenizer.chat import CHATML, ChatTemplate, TemplateError
from gmoe.tokenizer.parsers.choose import dialect_of
from gmoe.tokenizer.tokenizer import Tokenizer

ENTRY = Entry("m", Path("m.gguf"), "", 0, 0.0)


class Llm:
    """A word is a token; the template may want a user's message first."""

    def __init__(self, context: int, strict: bool = False):
        self.context, self.strict, self.rendered = context, strict, 0
        self.template = SimpleNamespace(render=self.render, source="", source_for=lambda tools: "")
        self.file = SimpleNamespace(metadata={})

    def render(self, messages: list[dict[str, str]], tools: Any, **values: Any) -> str:
        self.rendered += 1
        if self.strict and messages[0]["role"] != "user":
            raise TemplateError("conversations begin with the user")
        return " ".join(message["content"] for message in messages)

    def encode_chat(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]


def conversation(choose: random.Random, n: int) -> list[dict[str, str]]:
    roles = ["system" if choose.random() < 0.1 else ("user", "assistant")[n % 2] for n in range(n)]
    return [{"role": role, "content": f"{n} " * choose.randint(1, 30)} for n, role in enumerate(roles)]


@pytest.mark.parametrize("seed", range(60))
def test_no_message_more_than_need_be(seed: int) -> None:
    choose = random.Random(seed)
    messages, limit = conversation(choose, choose.randint(1, 40)), choose.randint(2, 300)
    prompt = prompt_of(Llm(limit), ENTRY, Ask(model="m", messages=messages))  # type: ignore[arg-type]
    left = list(messages)
    while len(" ".join(message["content"] for message in left).split()) >= limit:  # one after the other
        oldest = next((n for n, message in enumerate(left[:-1]) if message["role"] != "system"), None)
        if oldest is None:
            assert len(prompt.ids) < limit  # its middle went too
            return
        del left[oldest]
    assert prompt.ids == [int(word) for message in left for word in message["content"].split()]


def test_a_long_conversation_is_not_rendered_once_a_message() -> None:
    messages = [{"role": "user", "content": f"{n} " * 20} for n in range(4000)]
    llm = Llm(1000)
    prompt = prompt_of(llm, ENTRY, Ask(model="m", messages=messages))  # type: ignore[arg-type]
    assert prompt.ids == [n for n in range(3951, 4000) for _ in range(20)] and llm.rendered < 20


@pytest.mark.parametrize("n", range(2, 12))
def test_it_begins_where_the_template_can(n: int) -> None:
    messages = [{"role": ("user", "assistant")[k % 2], "content": f"{k} " * 10} for k in range(11)]
    prompt = prompt_of(Llm(10 * n + 1, strict=True), ENTRY, Ask(model="m", messages=messages))  # type: ignore[arg-type]
    first = 11 - n + (11 - n) % 2
    assert prompt.ids == [k for k in range(first, 11) for _ in range(10)]


def test_a_template_finds_ids_where_the_client_sent_none(monkeypatch: pytest.MonkeyPatch) -> None:
    llm, seen = Llm(100), []
    llm.template.source_for = lambda tools: "[TOOL_CALLS]"
    monkeypatch.setattr(llm.template, "render", lambda messages, tools: seen.extend(messages) or "1")
    call = {"id": "", "function": {"name": "add", "arguments": {}}}
    messages = [{"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "2"}]
    prompt_of(llm, ENTRY, Ask(model="m", messages=messages))  # type: ignore[arg-type]
    assert seen[0]["tool_calls"][0]["id"] == seen[1]["tool_call_id"] == "000000000"


def test_a_system_message_of_the_request_replaces_the_modelfile_s() -> None:
    commands = (Command("system", "1"), Command("message", "2", "user"), Command("message", "3", "assistant"))
    entry = replace(ENTRY, modelfile=Modelfile(commands))
    asked = [{"role": "user", "content": "5"}]
    for system, ids in ([], [1, 2, 3, 5]), ([{"role": "system", "content": "4"}], [4, 2, 3, 5]):
        prompt = prompt_of(Llm(9), entry, Ask(model="m", messages=[*system, *asked]))  # type: ignore[arg-type]
        assert prompt.ids == ids


def toy(template: str, context: int = 400, **metadata: Any) -> Any:
    """What a loaded model has of a prompt's concern, with a real tokenizer and template."""
    metadata = byte_level() | {"tokenizer.chat_template": template} | metadata
    tokenizer = Tokenizer.from_gguf(metadata, "toy")
    own = ChatTemplate.from_gguf(metadata, tokenizer, "toy")
    llm = SimpleNamespace(context=context, tokenizer=tokenizer, template=own, file=SimpleNamespace(metadata=metadata))
    llm.encode_chat = partial(LLM.encode_chat, llm)  # type: ignore[arg-type]
    return llm


@pytest.mark.parametrize("template", ["{{ messages[-1].content }}", "{{ bos_token }}{{ messages[-1].content }}"])
def test_a_conversation_that_goes_on_has_one_beginning(template: str) -> None:
    llm = toy(template, **{"tokenizer.ggml.add_bos_token": True})
    bos, asked = llm.tokenizer.bos_id, Ask(model="m", prompt="one", templated=True)
    first = prompt_of(llm, ENTRY, asked).ids
    assert first[0] == bos and prompt_of(llm, ENTRY, replace(asked, context=first)).ids == [*first, *first[1:]]


def test_what_is_only_rendered_may_be_longer_than_the_context() -> None:
    asked = Ask(model="m", messages=[{"role": "user", "content": "1 2 3"}], truncate=False)
    with pytest.raises(Refused, match="the prompt has 3 tokens, the context holds 3"):
        prompt_of(Llm(3), ENTRY, asked)  # type: ignore[arg-type]
    prompt = prompt_of(Llm(3), ENTRY, replace(asked, only_render=True))  # type: ignore[arg-type]
    assert prompt.ids == [1, 2, 3] and prompt.text == "1 2 3" and prompt.room == 0


@pytest.mark.parametrize(
    ("more", "go", "own"),
    [
        ({}, "think ", "True"),
        ({"think": True}, "think ", "True"),
        ({"think": False}, "none", "False"),
        ({"think": "low"}, "think low", "True low"),
        ({"template_values": {"thinking": False}}, "none", "unset"),
    ],
)
def test_a_model_that_can_think_is_told_to_unless_something_is_said(more: Any, go: str, own: str) -> None:
    asked = Ask(model="m", messages=[{"role": "user", "content": "x"}], **more)
    source = "{{ if .Messages }}{{ if .Think }}think {{ .ThinkLevel }}{{ else }}none{{ end }}{{ end }}"
    entry = replace(ENTRY, modelfile=Modelfile((Command("template", source),)))
    assert prompt_of(toy(""), entry, asked).text == go
    llm = toy("{{ enable_thinking | default('unset') }}{{ ' ' ~ reasoning_effort if reasoning_effort }}")
    assert prompt_of(llm, ENTRY, asked).text == own
    plain = toy("{{ thinking is defined }}")
    assert prompt_of(plain, ENTRY, Ask(model="m", messages=asked.messages)).text == "False"


def test_a_template_for_tools_makes_a_model_that_can_call_them() -> None:
    calls = "{{ tools | tojson }}<tool_call>"
    llm = toy("{{ messages[0].content }}", **{"tokenizer.chat_template.tool_use": calls})
    assert capabilities(llm.file.metadata, Modelfile(())) == ["completion", "tools"]
    assert [dialect_of(llm.template.source_for(tools)) for tools in ([], [{}])] == ["plain", "hermes"]


def test_calls_have_ids_as_the_template_that_is_used_with_tools_takes_them() -> None:
    template = (
        "{# [TOOL_CALLS] #}{% for message in messages %}{% for call in message.tool_calls or [] %}{{ call.id }} "
        "{% if call.id|length != 9 %}{{ raise_exception('no id') }}{% endif %}{% endfor %}"
        "{% if message.role == 'tool' %}={{ message.tool_call_id }} {% endif %}{% endfor %}"
    )
    llm = toy("{{ messages[0].content }}", **{"tokenizer.chat_template.tool_use": template})
    messages: list[dict[str, Any]] = [{"role": "user", "content": "x"}]
    for ids in (["call_abcdefgh", "call_2", "AbCdEf123"], [None], ["call_2"]):
        calls = [{"id": id, "function": {"name": "f", "arguments": {}}} for id in ids]
        messages.append({"role": "assistant", "content": "", "tool_calls": calls})
        messages += [{"role": "tool", "content": "1", "tool_call_id": id} for id in reversed(ids)]
    text = prompt_of(llm, ENTRY, Ask(model="m", messages=messages, tools=[{}])).text
    assert text is not None
    first, second, own, *told, made, result, again, last = text.split()
    assert told == [f"={id}" for id in (own, second, first)] and own == "AbCdEf123" != first != second
    assert f"={made}" == result == "=000000003" and f"={again}" == last == f"={second}"


def test_a_last_message_of_the_assistant_s_is_gone_on_with() -> None:
    def text(template: str, content: str, **more: Any) -> str | None:
        messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": content, **more}]
        return prompt_of(toy(template), ENTRY, Ask(model="m", messages=messages)).text

    asked = "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n"
    assert text(CHATML, '{"yes": ') == asked + '{"yes": '
    assert text(CHATML.replace("(message.content or '')", "message.content | trim"), "e ") == asked + "e "
    called = text(CHATML, "e", tool_calls=[{"function": {"name": "f"}}])
    assert called == f"{asked}e<|im_end|>\n<|im_start|>assistant\n"
    assert text("{{ messages[0].content }}", "e") == "x"


@pytest.mark.parametrize(
    ("template", "source", "given", "said"),
    [
        (
            "{{ raise_exception('users begin') }}",
            "",
            None,
            "model 'm': tokenizer.chat_template: the template cannot be",
        ),
        ("", "{{ range .Prompt }}{{ end }}", None, "model 'm': the template cannot range over 'one'"),
        ("", "", "{{ range .Prompt }}{{ end }}", "the template cannot range over 'one'"),
    ],
)
def test_a_template_s_fault_is_told_without_the_file(template: str, source: str, given: str | None, said: str) -> None:
    llm, entry = toy(template), replace(ENTRY, modelfile=Modelfile((Command("template", source),) * bool(source)))
    llm.template.file = "/home/somebody/m.gguf"
    with pytest.raises(Refused) as error:
        prompt_of(llm, entry, Ask(model="m", prompt="one", templated=True, template=given))
    assert error.value.status == 400 and error.value.text.startswith(said) and "/home" not in error.value.text
