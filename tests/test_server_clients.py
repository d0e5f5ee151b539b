"""The clients that people have, driven through every call that they offer."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import ollama
import openai
import pytest

from gmoe.library.demo import bundle
from gmoe.options import RuntimeOptions
from tests.factory import CHATML, write_model
from tests.fake_registry import serving
from tests.live_server import Live, live_server

FEW = {"num_predict": 5, "temperature": 0, "seed": 1}
HELLO = [{"role": "user", "content": "hello"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer", "maximum": 9}, "b": {"type": "integer", "maximum": 9}},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"yes": {"type": "boolean"}},
    "required": ["yes"],
    "additionalProperties": False,
}
TEMPLATE = (
    "{% if tools %}<tool_call>{{ tools | tojson }}{% endif %}" + CHATML + "{% if enable_thinking %}<think>{% endif %}"
)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    home = tmp_path_factory.mktemp("home")
    files = [write_model(home / "tiny.gguf", template=TEMPLATE)]
    with live_server(home, files, RuntimeOptions(context=1024, max_sequences=4)) as live:
        yield live


@pytest.fixture
def llama(live: Live) -> Iterator[ollama.Client]:
    client = ollama.Client(host=live.url)
    yield client
    client._client.close()


def test_ollama_generates_and_chats(llama: ollama.Client) -> None:
    one = llama.generate("tiny", "hello", options=FEW)
    assert one.done and one.eval_count == 5 and one.context and one.total_duration
    pieces = list(llama.generate("tiny", "hello", options=FEW, stream=True))
    assert "".join(piece.response for piece in pieces) == one.response
    one = llama.chat("tiny", HELLO, options=FEW, logprobs=True, top_logprobs=3)
    assert one.message.role == "assistant" and one.logprobs is not None and len(one.logprobs) == 5
    assert all(token.logprob <= 0 and len(token.top_logprobs or ()) == 3 for token in one.logprobs)
    pieces = list(llama.chat("tiny", HELLO, options=FEW, stream=True, keep_alive="1m"))
    assert "".join(piece.message.content for piece in pieces) == one.message.content
    assert [piece.done for piece in pieces][-1]


def test_ollama_follows_a_schema_and_calls_tools(llama: ollama.Client) -> None:
    answer = llama.chat("tiny", HELLO, format=SCHEMA, options={"num_predict": 300, "seed": 3}, think=False)
    assert set(json.loads(answer.message.content)) == {"yes"}
    answer = llama.chat("tiny", HELLO, tools=[TOOL], options=FEW)
    assert answer.message.tool_calls is None  # a random model calls nothing, and nothing fails
    with pytest.raises(ollama.ResponseError, match='"tiny" does not support image input'):
        llama.chat("tiny", [{"role": "user", "content": "x", "images": ["aGk="]}])


def test_ollama_keeps_a_library(llama: ollama.Client, tmp_path: Path) -> None:
    digest = llama.create_blob(write_model(tmp_path / "new.gguf", seed=5))
    assert llama.create_blob(tmp_path / "new.gguf") == digest
    steps = llama.create(
        "mine",
        files={"new.gguf": digest},
        system="Be brief.",
        parameters={"num_predict": 4, "stop": ["x"], "seed": 1},
        stream=True,
    )
    assert [step.status for step in steps][-2:] == ["writing manifest", "success"]
    assert llama.create("yours", from_="mine", template="{{ .Prompt }}", stream=False).status == "success"
    beyond = '{{ template "x" . }}'  # the GGUF's own template counts, as in `gmoe run`
    assert llama.create("other", from_="mine", template=beyond, stream=False).status == "success"
    assert llama.chat("other", HELLO).prompt_eval_count == llama.chat("mine", HELLO).prompt_eval_count
    shown = llama.show("mine")
    assert shown.parameters and 'stop                           "x"' in shown.parameters
    assert shown.details and shown.details.family == "qwen3moe" and "completion" in (shown.capabilities or [])
    assert shown.modelinfo and shown.modelinfo["qwen3moe.block_count"] == 2
    assert {"mine:latest", "yours:latest", "tiny:latest"} <= {model.model for model in llama.list().models}
    assert llama.chat("mine", HELLO).eval_count == 4
    assert llama.generate("yours", "hello", stream=False, options={"num_predict": 1}).prompt_eval_count == 3
    assert {"mine:latest", "yours:latest"} <= {model.model for model in llama.ps().models}
    assert llama.copy("mine", "other").status == "success"
    assert llama.delete("other").status == llama.delete("yours").status == llama.delete("mine").status == "success"
    with pytest.raises(ollama.ResponseError, match="model 'mine' not found") as raised:
        llama.delete("mine")
    assert raised.value.status_code == 404
    assert {model.model for model in llama.list().models} >= {"tiny:latest"}


def test_ollama_quantizes(llama: ollama.Client, tmp_path: Path) -> None:
    digest = llama.create_blob(write_model(tmp_path / "new.gguf", seed=5))
    llama.create(
        "plain", files={"new.gguf": digest}, system="Be brief.", parameters={"num_predict": 2, "seed": 1}, stream=False
    )
    steps = list(llama.create("small", from_="plain", quantize="q8_0", parameters={"top_k": 3}, stream=True))
    quantizing = [step for step in steps if step.status == "quantizing F32 model to Q8_0"]
    assert quantizing[0].completed == 0 and quantizing[-1].completed == quantizing[-1].total and len(quantizing) > 9
    assert steps[-1].status == "success"
    shown = llama.show("small")
    assert shown.details and shown.details.quantization_level == "Q8_0" and "Be brief." in (shown.modelfile or "")
    assert llama.chat("small", HELLO).eval_count == 2
    assert llama.create("same", files={"new.gguf": digest}, quantize="Q8_0", stream=False).status == "success"
    models = {model.model: model for model in llama.list().models}
    assert models["same:latest"].size < models["plain:latest"].size
    for wrong, error in (("q99", "q99 is not a type that can be written"), ("Q4_0", "is Q8_0 already")):
        with pytest.raises(ollama.ResponseError, match=error) as raised:
            llama.create("again", from_="small", quantize=wrong, stream=False)
        assert raised.value.status_code == 400
    for name in ("plain", "small", "same"):
        llama.delete(name)


def test_ollama_embeds(llama: ollama.Client) -> None:
    answer = llama.embed("tiny", ["hello", "world"])
    assert [len(vector) for vector in answer.embeddings] == [64, 64]
    assert abs(sum(x * x for x in answer.embeddings[0]) - 1) < 1e-5
    assert llama.embed("tiny", "hello", dimensions=8).embeddings[0].__len__() == 8
    assert list(llama.embeddings("tiny", "hello").embedding) == pytest.approx(list(answer.embeddings[0]), abs=1e-6)


def test_ollama_pushes_pulls_and_runs_what_it_pulled(llama: ollama.Client, tmp_path: Path) -> None:
    digest = llama.create_blob(write_model(tmp_path / "tiny.gguf", template=TEMPLATE))
    with serving() as registry:
        name = f"{registry.host}/me/tiny:v1"
        assert llama.create(name, files={"tiny.gguf": digest}).status == "success"
        digest = next(model.digest for model in llama.list().models if model.model == name)
        pieces = list(llama.push(name, insecure=True, stream=True))
        assert (pieces[0].status, pieces[-1].status) == ("retrieving manifest", "success")
        assert any(piece.total and piece.completed == piece.total for piece in pieces)
        assert llama.push(name, insecure=True).status == llama.delete(name).status == "success"
        assert name not in {model.model for model in llama.list().models}
        pieces = list(llama.pull(name, insecure=True, stream=True))
        assert (pieces[0].status, pieces[-1].status) == ("pulling manifest", "success")
        assert llama.pull(name, insecure=True).status == "success"
    assert next(model.digest for model in llama.list().models if model.model == name) == digest
    assert llama.generate(name, "hello", options=FEW).response == llama.generate("tiny", "hello", options=FEW).response
    assert llama.delete(name).status == "success"


def test_ollama_hears_of_errors_within_a_stream(llama: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="pull model manifest"):
        list(llama.pull("127.0.0.1:9/me/nothing", stream=True))
    with pytest.raises(ollama.ResponseError):
        llama.push("nothing")
    with pytest.raises(ollama.ResponseError, match="model 'nothing' not found"):
        llama.chat("nothing", HELLO)


def test_the_asynchronous_ollama(live: Live) -> None:
    async def talk() -> None:
        client = ollama.AsyncClient(host=live.url)
        pieces = [piece async for piece in await client.chat("tiny", HELLO, options=FEW, stream=True)]
        assert pieces[-1].done
        assert (await client.generate("tiny", "x", options=FEW)).done
        assert (await client.list()).models and (await client.ps()).models
        assert (await client.embed("tiny", "x")).embeddings
        await client._client.aclose()

    anyio.run(talk)


@pytest.fixture
def client(live: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=live.url + "/v1", api_key="none", max_retries=0) as client:
        yield client


def chat(client: openai.OpenAI, **more: Any) -> Any:
    given: dict[str, Any] = {"model": "tiny", "messages": HELLO, "max_tokens": 5, "temperature": 0, "seed": 1}
    given["reasoning_effort"] = "none"  # the template would begin a thought
    return client.chat.completions.create(**{**given, **more})


def test_openai_chats(client: openai.OpenAI) -> None:
    one = chat(client, logprobs=True, top_logprobs=2)
    assert one.object == "chat.completion" and one.choices[0].finish_reason == "length"
    assert one.usage.completion_tokens == 5 and one.usage.total_tokens == one.usage.prompt_tokens + 5
    assert len(one.choices[0].logprobs.content) == 5 and len(one.choices[0].logprobs.content[0].top_logprobs) == 2
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == one.choices[0].message.content
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 5
    assert chunks[-2].choices[0].finish_reason == "length" and chunks[-2].usage is None


def test_openai_forces_a_tool(client: openai.OpenAI) -> None:
    for choice in ("required", {"type": "function", "function": {"name": "add"}}):
        answer = chat(client, tools=[TOOL], tool_choice=choice, max_tokens=300, temperature=1, stop=["add", "}"])
        (call,) = answer.choices[0].message.tool_calls
        assert call.function.name == "add" and set(json.loads(call.function.arguments)) == {"a", "b"}
        assert answer.choices[0].finish_reason == "tool_calls" and answer.choices[0].message.content is None
    chunks = list(chat(client, tools=[TOOL], tool_choice="required", max_tokens=300, stream=True, temperature=1))
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert [call.function.name for call in calls] == ["add"] and chunks[-1].choices[0].finish_reason == "tool_calls"
    after = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [calls[0].model_dump()]},
        {"role": "tool", "tool_call_id": calls[0].id, "content": "3"},
    ]
    assert chat(client, messages=after, tools=[TOOL], tool_choice="none").choices[0].message.tool_calls is None


def test_openai_allows_some_tools(client: openai.OpenAI) -> None:
    other = {"type": "function", "function": {"name": "sub"}}
    few: dict[str, Any] = {"mode": "required", "tools": [{"type": "function", "function": {"name": "add"}}]}
    choice = {"type": "allowed_tools", "allowed_tools": few}
    answer = chat(client, tools=[other, TOOL], tool_choice=choice, max_tokens=300, temperature=1)
    assert [call.function.name for call in answer.choices[0].message.tool_calls] == ["add"]
    flat: dict[str, Any] = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "add"}]}
    tools: list[Any] = [{"type": "function", **tool["function"]} for tool in (other, TOOL)]  # type: ignore[dict-item]
    said = client.responses.create(model="tiny", input="x", tools=tools, tool_choice=flat)  # type: ignore[arg-type]
    assert [item.name for item in said.output if item.type == "function_call"] == ["add"]
    for wrong, why in (({"tools": []}, "allowed_tools needs a list"), ({"tools": [{"name": "x"}]}, "no tool 'x'")):
        with pytest.raises(openai.BadRequestError, match=why):
            chat(client, tools=[TOOL], tool_choice={"type": "allowed_tools", "allowed_tools": few | wrong})


CALL = '<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>'
CALLS = "root ::= " + json.dumps(CALL) + '{2} "and so on"'


@pytest.mark.parametrize("stream", [False, True])
def test_openai_ends_with_the_first_call_where_one_is_wanted(client: openai.OpenAI, stream: bool) -> None:
    def calls(**more: Any) -> tuple[int, str, str]:
        asked: dict[str, Any] = {"tools": [TOOL], "max_tokens": 300, "reasoning_effort": "none", "stream": stream}
        answer = chat(client, **asked, extra_body={"grammar": CALLS}, **more)
        if not stream:
            (one,) = answer.choices
            return len(one.message.tool_calls), one.message.content or "", one.finish_reason
        deltas = [chunk.choices[0] for chunk in answer]
        found = [call for one in deltas for call in one.delta.tool_calls or ()]
        return len(found), "".join(one.delta.content or "" for one in deltas), deltas[-1].finish_reason

    assert calls() == calls(parallel_tool_calls=True) == (2, "and so on", "tool_calls")
    assert calls(parallel_tool_calls=False) == (1, "", "tool_calls")


def test_openai_formats(client: openai.OpenAI) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
    answer = chat(client, response_format=schema, max_tokens=300, temperature=1, reasoning_effort="none")
    assert set(json.loads(answer.choices[0].message.content)) == {"yes"}
    bias = {str(n): -100 for n in range(272)} | {"65": 100}
    assert chat(client, logit_bias=bias).choices[0].message.content == "A" * 5
    stopped = chat(client, logit_bias=bias, stop=["AA"])
    assert stopped.choices[0].message.content == "" and stopped.choices[0].finish_reason == "stop"


def test_openai_counts_the_tokens_of_thinking(client: openai.OpenAI) -> None:
    bias = {str(n): -100 for n in range(272)} | {"65": 100}
    for effort, thought in (("none", 0), ("low", 5)):
        answer = chat(client, logit_bias=bias, reasoning_effort=effort)
        assert answer.usage.completion_tokens_details.reasoning_tokens == thought
        assert (answer.choices[0].message.content or "") == "A" * (5 - thought)
    asked: dict[str, Any] = {"model": "tiny", "input": "x", "max_output_tokens": 5, "temperature": 0}
    said = client.responses.create(**asked, reasoning={"effort": "low"})
    assert [item.type for item in said.output] == ["reasoning", "message"]
    assert said.usage and said.usage.output_tokens_details.reasoning_tokens == 5


def test_openai_completes_embeds_and_lists(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt="hello", max_tokens=4, temperature=0, echo=True, logprobs=1)
    assert answer.choices[0].text.startswith("hello") and answer.choices[0].logprobs is not None
    assert len(answer.choices[0].logprobs.tokens or ()) == len(["he", "ll", "o"]) + 4
    chunks = list(client.completions.create(model="tiny", prompt=[1, 2], max_tokens=4, temperature=0, stream=True))
    assert chunks[-1].choices[0].finish_reason in ("length", "stop")
    for encoding in ("float", "base64"):
        found = client.embeddings.create(model="tiny", input=["a", "b"], encoding_format=encoding)  # type: ignore[arg-type]
        assert len(found.data) == 2
    assert len(client.embeddings.create(model="tiny", input="a", dimensions=4).data[0].embedding) == 4
    assert "tiny:latest" in [model.id for model in client.models.list()]
    assert client.models.retrieve("tiny").id == "tiny"


def test_several_answers_to_one_request(client: openai.OpenAI) -> None:
    alone = [chat(client, temperature=1, seed=seed).choices[0].message.content for seed in (3, 4, 5)]
    assert len(set(alone)) > 1
    together = chat(client, temperature=1, seed=3, n=3)
    assert [choice.message.content for choice in together.choices] == alone and together.usage.completion_tokens == 15
    asked: dict[str, Any] = {"model": "tiny", "prompt": ["hello", "you", "a"], "max_tokens": 4, "temperature": 0}
    texts = [client.completions.create(**asked | {"prompt": one}).choices[0].text for one in asked["prompt"]]
    assert [choice.text for choice in client.completions.create(**asked).choices] == texts
    streamed = ["", "", ""]
    for chunk in client.completions.create(**asked, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == texts
    with pytest.raises(openai.BadRequestError, match="the context holds"):  # one that fails ends all
        long = [5] * 3000
        client.completions.create(**asked | {"prompt": [[5], long]}, echo=True, logprobs=1)


def test_offsets_are_places_of_the_text(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "logprobs": 0}
    echo = client.completions.create(**asked, prompt="\u4f60\u597dab", echo=True, max_tokens=0).choices[0]
    assert echo.text == "\u4f60\u597dab" and echo.logprobs and echo.logprobs.text_offset == [0, 0, 0, 1, 1, 1, 2, 3]
    held = asked | {"prompt": "x", "max_tokens": 6, "logit_bias": {str(ord("a")): 100}, "stop": ["aaab"]}
    chunks = [chunk.choices[0] for chunk in client.completions.create(**held, stream=True)]
    offsets = [at for chunk in chunks if chunk.logprobs for at in chunk.logprobs.text_offset or ()]
    assert offsets == [0, 1, 2, 3, 4, 5] and "".join(chunk.text for chunk in chunks) == 6 * "a"


def test_the_probabilities_of_a_prompt_are_those_of_its_tokens_when_they_are_generated(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "temperature": 0, "logprobs": 2}
    first = client.completions.create(**asked, prompt=[5, 6, 7], max_tokens=6).choices[0]
    said = client.completions.create(**asked, prompt=[5, 6, 7], max_tokens=6, echo=True).choices[0]
    assert said.text.endswith(first.text) and first.logprobs and said.logprobs and said.logprobs.token_logprobs
    assert said.logprobs.token_logprobs[0] is None and said.logprobs.top_logprobs and not said.logprobs.top_logprobs[0]
    for best in said.logprobs.top_logprobs[1:]:
        assert [*best.values()] == sorted(best.values(), reverse=True)
    assert said.logprobs.tokens and len(said.logprobs.tokens) == len(said.logprobs.text_offset or ()) == 9
    assert said.logprobs.token_logprobs[3:] == first.logprobs.token_logprobs
    only = {str(n): -100 for n in range(272)} | {"65": 100}
    text = client.completions.create(**asked, prompt="hello", max_tokens=6, logit_bias=only).choices[0]
    assert text.logprobs and text.logprobs.token_logprobs
    whole = client.completions.create(**asked, prompt="hello" + text.text, max_tokens=0, echo=True).choices[0]
    assert whole.text == "hello" + text.text and whole.logprobs and whole.finish_reason == "length"
    assert (whole.logprobs.token_logprobs or [])[-6:] == text.logprobs.token_logprobs


def test_openai_responses(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "max_output_tokens": 5, "temperature": 0, "reasoning": {"effort": "none"}}
    answer = client.responses.create(**asked, input="hello", instructions="Be.")
    assert answer.status == "incomplete" and answer.output_text and answer.usage and answer.usage.output_tokens == 5
    events = list(client.responses.create(**asked, input=HELLO, stream=True))
    assert [event.type for event in events][:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert events[-1].type == "response.incomplete"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert said == events[-1].response.output_text
    tool = {"type": "function", **TOOL["function"]}
    wanted: dict[str, Any] = {"tools": [tool], "tool_choice": "required", "max_output_tokens": 300}
    forced = client.responses.create(model="tiny", input="x", **wanted)
    assert forced.output[-1].type == "function_call" and forced.output[-1].name == "add"
    with client.responses.stream(model="tiny", input="hello", **wanted) as stream:
        assert stream.get_final_response().output[-1].type == "function_call"
    long: dict[str, Any] = {"model": "tiny", "input": "hello " * 1000, "max_output_tokens": 3}
    assert client.responses.create(**long, truncation="auto").truncation == "auto"
    for more in ({}, {"truncation": "disabled"}):
        with pytest.raises(openai.BadRequestError, match="tokens, the context holds 1024"):
            client.responses.create(**long, **more)  # type: ignore[call-overload]


def test_openai_responses_tell_probabilities(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "input": "hello", "max_output_tokens": 5, "temperature": 0}
    asked |= {"include": ["message.output_text.logprobs"], "top_logprobs": 2, "parallel_tool_calls": False}
    asked["reasoning"] = {"effort": "none"}
    answer = client.responses.create(**asked)
    assert answer.top_logprobs == 2 and answer.parallel_tool_calls is False
    told = answer.output[0].content[0].logprobs
    want = chat(client, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert [(one.token, one.logprob, one.bytes) for one in told] == [
        (one.token, one.logprob, one.bytes) for one in want
    ]
    assert [len(one.top_logprobs) for one in told] == [2] * 5
    events = list(client.responses.create(**asked, stream=True))
    streamed = [one for event in events if event.type == "response.output_text.delta" for one in event.logprobs]
    (done,) = [event for event in events if event.type == "response.output_text.done"]
    assert streamed and [one.logprob for one in done.logprobs] == [one.logprob for one in told]
    assert [one.logprob for one in streamed] == [one.logprob for one in told][: len(streamed)]
    assert events[-1].response.output[0].content[0].logprobs == told


def test_openai_errors_have_their_types(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="model 'none' not found") as missing:
        chat(client, model="none")
    assert missing.value.body == {
        "message": "model 'none' not found", "type": "not_found_error", "param": None, "code": None,
    }  # fmt: skip
    with pytest.raises(openai.BadRequestError, match="n: .*greater than or equal to 1"):
        chat(client, n=0)
    with pytest.raises(
        openai.BadRequestError, match="reasoning effort is banana; it must be one of none, minimal, low"
    ):
        chat(client, reasoning_effort="banana")
    assert chat(client, reasoning_effort="xhigh").choices
    with pytest.raises(openai.BadRequestError, match="top_logprobs needs logprobs to be true"):
        chat(client, top_logprobs=2)
    with pytest.raises(openai.BadRequestError, match="does not support image input"):
        image = {"type": "image_url", "image_url": {"url": "http://x/y.png"}}
        chat(client, messages=[{"role": "user", "content": [image]}])


def test_the_asynchronous_openai(live: Live) -> None:
    async def talk() -> None:
        async with openai.AsyncOpenAI(base_url=live.url + "/v1", api_key="none") as client:
            stream = await client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=3, stream=True)  # type: ignore[call-overload]
            assert [chunk async for chunk in stream][-1].choices[0].finish_reason

    anyio.run(talk)


@pytest.mark.skipif(not bundle(), reason="no demo model is bundled")
def test_the_demo_answers_both_clients(live: Live) -> None:
    with openai.OpenAI(base_url=live.url + "/v1", api_key="none") as client:
        chunks = list(chat(client, model="demo", max_tokens=8, stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks).strip()
        assert "demo:latest" in [model.id for model in client.models.list()]
    client = ollama.Client(host=live.url)
    answer = client.generate(
        "demo", "Once upon a time there was", raw=True, options={"num_predict": 12, "temperature": 0}
    )
    assert answer.eval_count == 12 and answer.response.isprintable()
    assert client.show("demo").modelinfo and client.embed("demo", "x").embeddings
    client._client.close()


SCRIPT = Path(__file__).parent / "javascript" / "client.mjs"


@pytest.mark.skipif(not shutil.which("node"), reason="node is not here")
@pytest.mark.skipif(not (SCRIPT.parent / "node_modules" / "ollama").is_dir(), reason="make javascript was not run")
def test_ollama_for_javascript(live: Live) -> None:
    done = subprocess.run(["node", str(SCRIPT), live.url], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "every call answered"
