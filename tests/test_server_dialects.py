"""Dialects as pure functions: bodies in, scripted events in, golden chunks out; and their routes on a live server."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gmoe.options import RuntimeOptions
from gmoe.server import anthropic, llama_text, ollama, openai, openai_text, responses
from gmoe.server.ask import Chosen, End, Event, Loading, Piece, Refused, ToolCall, Usage
from gmoe.server.stream import to_bytes
from tests.factory import write_model
from tests.live_server import Live, live_server

USAGE = Usage(
    prompt_tokens=7,
    cached_tokens=3,
    tokens=4,
    thinking_tokens=1,
    prompt_seconds=0.5,
    decode_seconds=2.0,
    total_seconds=2.5,
)
EVENTS: list[Event] = [
    Piece(thinking="hm"),
    Piece("Hé"),
    Piece("llo", logprobs=(Chosen("llo", -0.5, b"llo", 9, (Chosen("llo", -0.5, b"llo", 9),)),)),
    Piece(tool_calls=(ToolCall("call_1", "add", {"b": 1, "a": 2}),)),
    End("tool_calls", USAGE),
]
SAID = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


def scrubbed(chunks: Iterator[Any]) -> list[Any]:
    """Without what changes from call to call."""
    text = json.dumps(list(chunks), ensure_ascii=False)
    text = re.sub(r'"(msg|resp|rs|fc|chatcmpl|cmpl)([_-])[0-9a-f]+"', r'"\1"', text)
    text = re.sub(r'"(created|created_at)": ("[^"]+"|\d+)', r'"\1": 0', text)
    return json.loads(text)


def events() -> Iterator[Event]:
    return iter(EVENTS)


def test_ollamas_lines() -> None:
    lines = scrubbed(ollama.render_chat(ollama.parse_chat(SAID), events()))
    head = {"model": "m", "created_at": 0}
    token = {"token": "llo", "logprob": -0.5, "bytes": [108, 108, 111]}
    call = {"id": "call_1", "function": {"index": 0, "name": "add", "arguments": {"b": 1, "a": 2}}}
    say = {"role": "assistant", "content": ""}
    assert lines == [
        head | {"message": say | {"thinking": "hm"}, "done": False},
        head | {"message": say | {"content": "Hé"}, "done": False},
        head | {"message": say | {"content": "llo"}, "done": False, "logprobs": [token | {"top_logprobs": [token]}]},
        head | {"message": say | {"tool_calls": [call]}, "done": False},
        head
        | {"message": say, "done": True, "done_reason": "stop"}
        | {"total_duration": 2500000000, "load_duration": 1, "prompt_eval_count": 7}
        | {"prompt_eval_duration": 500000000, "eval_count": 4, "eval_duration": 2000000000},
    ]
    assert list(lines[3]["message"]["tool_calls"][0]["function"]["arguments"]) == ["b", "a"]  # in the model's order
    (whole,) = scrubbed(ollama.render_chat(ollama.parse_chat(SAID | {"stream": False}), events()))
    assert whole["message"] == {"role": "assistant", "content": "Héllo", "thinking": "hm", "tool_calls": [call]}


def test_calls_are_counted_over_the_answer() -> None:
    two = [Piece(tool_calls=(ToolCall(id, "add", {}),)) for id in ("a", "b")]
    for stream in (True, False):
        lines = ollama.render_chat(ollama.parse_chat(SAID | {"stream": stream}), iter([*two, End("tool_calls")]))
        calls = [call for line in scrubbed(lines) for call in line["message"].get("tool_calls", ())]
        assert [call["function"]["index"] for call in calls] == [0, 1]


def test_openais_chunks() -> None:
    asked = SAID | {"stream": True, "stream_options": {"include_usage": True}}
    chunks = scrubbed(openai.render_chat(openai.parse_chat(asked), events()))
    head = {"id": "chatcmpl", "object": "chat.completion.chunk", "created": 0, "model": "m"}
    assert chunks[0] == head | {
        "system_fingerprint": "fp_gmoe",
        "choices": [
            {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        ],
        "usage": None,
    }
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[1:6]]
    function = {"name": "add", "arguments": '{"b": 1, "a": 2}'}
    assert deltas == [
        {"reasoning": "hm", "reasoning_content": "hm"},
        {"content": "Hé"},
        {"content": "llo"},
        {"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": function}]},
        {},
    ]
    assert chunks[5]["choices"][0]["finish_reason"] == "tool_calls"
    assert chunks[6]["choices"] == [] and chunks[6]["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 4,
        "total_tokens": 11,
        "prompt_tokens_details": {"cached_tokens": 3},
        "completion_tokens_details": {"reasoning_tokens": 1},
    }
    assert chunks[7:] == ["[DONE]"]
    assert openai.encode("[DONE]") == b"data: [DONE]\n\n"


def test_anthropics_events() -> None:
    asked = SAID | {"max_tokens": 9, "stream": True}
    chunks = scrubbed(anthropic.render(anthropic.parse(asked), events()))
    assert [name for name, _ in chunks] == [
        "message_start",
        *("content_block_start", "content_block_delta", "content_block_stop"),
        *("content_block_start", "content_block_delta", "content_block_delta", "content_block_stop"),
        *("content_block_start", "content_block_delta", "content_block_stop"),
        *("message_delta", "message_stop"),
    ]
    assert [body["index"] for name, body in chunks if name.startswith("content")] == [0] * 3 + [1] * 4 + [2] * 3
    assert chunks[2][1]["delta"] == {"type": "thinking_delta", "thinking": "hm"}
    assert chunks[8][1]["content_block"] == {"type": "tool_use", "id": "toolu_1", "name": "add", "input": {}}
    assert chunks[9][1]["delta"] == {"type": "input_json_delta", "partial_json": '{"b": 1, "a": 2}'}
    assert chunks[11][1]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert chunks[11][1]["usage"]["output_tokens"] == 4
    (whole,) = scrubbed(anthropic.render(anthropic.parse(SAID | {"max_tokens": 9}), events()))
    assert [block["type"] for block in whole["content"]] == ["thinking", "text", "tool_use"]
    assert anthropic.encode(("ping", {"type": "ping"})) == b'event: ping\ndata: {"type":"ping"}\n\n'


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("stop", "reason"), [(["a"], "stop_sequence"), ([], "end_turn")])
def test_anthropics_reason_names_only_the_requests_own_stop(stream: bool, stop: list[str], reason: str) -> None:
    ask = anthropic.parse(SAID | {"max_tokens": 9, "stop_sequences": stop, "stream": stream})
    chunks = scrubbed(anthropic.render(ask, iter([Piece("x"), End("stop", USAGE, stop="a")])))
    said = chunks[-2][1]["delta"] if stream else chunks[0]
    assert (said["stop_reason"], said["stop_sequence"]) == (reason, stop[0] if stop else None)


def test_anthropics_blocks_become_messages() -> None:
    blocks = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "add", "input": {"a": 1}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "2"}]},
    ]
    tools = [{"name": "add", "input_schema": {"type": "object"}}]
    body = {"model": "m", "max_tokens": 1, "system": "s", "messages": blocks, "tools": tools}
    ask = anthropic.parse(body | {"tool_choice": {"type": "any"}})
    call = {"id": "t", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    assert ask.messages == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "ab"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "2", "tool_call_id": "t"},
    ]
    assert ask.tool_choice == "required" and ask.tools[0]["function"]["name"] == "add"
    with pytest.raises(Refused, match="max_tokens: field required"):
        anthropic.parse(SAID)


@pytest.mark.parametrize("stream", [True, False])
def test_responses_tell_probabilities_of_the_text_only(stream: bool) -> None:
    def of(token: str, **more: Any) -> Piece:
        return Piece(**more, logprobs=(Chosen(token, -0.5, token.encode(), 9),))

    pieces = [of("<think>"), of("hm", thinking="hm"), of("Hi", content="Hi"), of("half a"), of("smile", content="☺")]
    pieces += [of("<tool"), of("_call>"), of("}", tool_calls=(ToolCall("call_1", "add", {}),))]
    asked = responses.parse({"model": "m", "input": "x", "stream": stream, "top_logprobs": 0})
    last = scrubbed(responses.render(asked, iter([*pieces, End("tool_calls", USAGE)])))[-1]
    output = (last[1]["response"] if stream else last)["output"]
    assert [one["token"] for one in output[1]["content"][0]["logprobs"]] == ["Hi", "half a", "smile"]


@pytest.mark.parametrize("content", [3, {"text": "x"}, [None], ["x"], [[{"text": "x"}]]])
@pytest.mark.parametrize("item", ["message", "function_call_output", "reasoning"])
def test_a_content_that_is_none_is_one_sentence(item: str, content: Any) -> None:
    name = "output" if item == "function_call_output" else "content"
    with pytest.raises(Refused, match="content must be text or a list of parts, each an object"):
        responses.parse({"model": "m", "input": [{"type": item, name: content}]})


@pytest.mark.parametrize("n", [513, 2**30, 2**80, 10**4000])
def test_too_many_answers_are_refused_before_they_are_made(n: int) -> None:
    for parse, said in ((openai.parse_chat, SAID), (openai_text.parse_completion, {"model": "m", "prompt": ["a"]})):
        with pytest.raises(Refused, match="answers are asked for; one request may have 512|n: input should be less"):
            parse({**said, "n": n})


@pytest.mark.parametrize(
    "format", [0.5, ["x"], "json", {"type": "json_schema", "json_schema": "x"}, {"type": [1] * 999}]
)
def test_a_format_that_is_none_is_one_short_sentence(format: Any) -> None:
    asked = ((openai.parse_chat, {"response_format": format}), (responses.parse, {"text": {"format": format}}))
    for parse, more in asked:
        with pytest.raises(Refused) as refused:
            parse({**SAID, "input": "x", **more})
        assert refused.value.status == 400 and len(refused.value.text) < 200


def test_thinking_is_read_back() -> None:
    item = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "so"}], "content": []}
    asked = responses.parse({"model": "m", "input": [item, {"role": "user", "content": "x"}]})
    assert asked.messages and asked.messages[0]["thinking"] == "so"


def test_the_items_of_one_answer_are_one_message() -> None:
    def called(id: str) -> dict[str, Any]:
        return {"type": "function_call", "call_id": id, "name": "add", "arguments": "{}"}

    def thought(text: str) -> dict[str, Any]:
        return {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": text}]}

    said = {"role": "assistant", "content": "well"}
    outputs = [{"type": "function_call_output", "call_id": id, "output": id} for id in "ab"]
    items = [thought("hm"), said, called("a"), called("b"), *outputs, thought("so"), said, said]
    messages = responses.parse({"model": "m", "input": [{"role": "user", "content": "x"}, *items]}).messages or ()
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "tool", "assistant", "assistant"]
    assert [(m["content"], m.get("thinking")) for m in messages[1::3]] == [("well", "hm"), ("well", "so")]
    assert [call["id"] for call in messages[1]["tool_calls"]] == ["a", "b"]


def test_responses_events_end_with_the_whole() -> None:
    chunks = scrubbed(responses.render(responses.parse({"model": "m", "input": "x", "stream": True}), events()))
    output = chunks[-1][1]["response"]["output"]
    assert [item["type"] for item in output] == ["reasoning", "message", "function_call"]
    assert output[1]["content"][0]["text"] == "Héllo" and output[2]["arguments"] == '{"b": 1, "a": 2}'
    done = [body["item"] for name, body in chunks if name == "response.output_item.done"]
    assert done == output
    (whole,) = scrubbed(responses.render(responses.parse({"model": "m", "input": "x"}), events()))
    assert whole["output"] == output and whole["status"] == "completed"
    with pytest.raises(Refused, match="previous_response_id is not supported"):
        responses.parse({"model": "m", "input": "x", "previous_response_id": "r"})


def test_llama_servers_object() -> None:
    body = {
        "prompt": "x",
        "n_predict": 4,
        "n_probs": 1,
        "stop": ["a", ""],
        "seed": -1,
        "logit_bias": [[5, False], [6, 1.5]],
    }
    ask = llama_text.parse_completion(body, "m")
    assert ask.sampling == {
        "max_tokens": 4, "seed": None, "logprobs": 1, "stop": ["a"], "logit_bias": {5: float("-inf"), 6: 1.5},
    }  # fmt: skip
    (whole,) = llama_text.render_completion(ask, events())
    assert isinstance(whole, dict) and whole["content"] == "Héllo" and whole["stop"] is True
    assert whole["timings"]["prompt_n"] == 4 and whole["timings"]["predicted_per_second"] == 2.0
    assert whole["completion_probabilities"][0]["top_logprobs"][0]["token"] == "llo"
    assert "draft_n" not in whole["timings"]
    told = Usage(drafted_tokens=7, accepted_tokens=5).timings()
    assert (told["draft_n"], told["draft_n_accepted"]) == (7, 5)


def test_prompts_that_are_not_supported_are_refused() -> None:
    with pytest.raises(Refused, match="600 answers are asked for; one request may have 512"):
        openai_text.parse_completion({"model": "m", "prompt": ["a", "b"], "n": 300})
    with pytest.raises(Refused, match="there are no tools"):
        openai.parse_chat(SAID | {"tool_choice": "required"})
    with pytest.raises(Refused, match="tool_choice: there is no tool 'f'"):
        openai.parse_chat(SAID | {"tool_choice": {"type": "function", "function": {"name": "f"}}})


def test_answers_to_one_request_come_with_their_numbers_and_its_prompt_counts_once() -> None:
    both = [
        event._replace(choice=choice) for event in EVENTS[1:] for choice in (1, 0) if not isinstance(event, Loading)
    ]
    asked = SAID | {"n": 2, "seed": 5}
    ask = openai.parse_chat(asked)
    assert [(part.copy, part.sampling["seed"]) for part in ask.parts] == [(0, 5), (1, 5)]
    (whole,) = openai.render_chat(ask, iter(both))
    assert isinstance(whole, dict) and [choice["index"] for choice in whole["choices"]] == [0, 1]
    assert [choice["message"]["content"] for choice in whole["choices"]] == ["Héllo"] * 2
    assert whole["usage"]["prompt_tokens"] == 7 and whole["usage"]["completion_tokens"] == 8
    *chunks, last = openai.render_chat(openai.parse_chat(asked | {"stream": True}), iter(both))
    assert last == openai.DONE and chunks[-1] != last
    choices = [chunk["choices"][0] for chunk in chunks if isinstance(chunk, dict)]
    for n in (0, 1):
        of = [choice for choice in choices if choice["index"] == n]
        assert of[0]["delta"]["role"] == "assistant" and of[-1]["finish_reason"] == "tool_calls"
        assert "".join(choice["delta"].get("content", "") for choice in of) == "Héllo"
    text = openai_text.parse_completion({"model": "m", "prompt": [[1], [2, 3]], "n": 2, "max_tokens": 3})
    assert [(part.prompt, part.copy) for part in text.parts] == [([1], 0), ([1], 1), ([2, 3], 0), ([2, 3], 1)]
    ends = [End("length", USAGE, choice=n) for n in range(4)]
    (whole,) = openai_text.render_completion(text, iter(ends))
    assert isinstance(whole, dict) and whole["usage"]["prompt_tokens"] == 14 and len(whole["choices"]) == 4


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    home = tmp_path_factory.mktemp("home")
    with live_server(home, [write_model(home / "tiny.gguf")], RuntimeOptions(context=256)) as live:
        live.never_end("tiny")
        yield live


def test_llama_servers_routes(live: Live) -> None:
    post = live.http.post
    ids = post("/tokenize", json={"content": "hello and", "with_pieces": True}).json()["tokens"]
    assert "".join(entry["piece"] for entry in ids) == "hello and"
    back = post("/detokenize", json={"tokens": [entry["id"] for entry in ids]}).json()
    assert back == {"content": "hello and"}
    assert post("/detokenize", json={"tokens": [-1]}).json()["error"]["code"] == 400
    prompt = post("/apply-template", json={"messages": [{"role": "user", "content": "hi"}]}).json()["prompt"]
    assert prompt == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    said = {**SAID, "model": "tiny", "chat_template_kwargs": {"messages": []}}
    assert post("/v1/chat/completions", json=said).status_code == post("/apply-template", json=said).status_code == 400
    for path in ("/health", "/v1/health"):
        assert live.http.get(path).json() == {"status": "ok"}
    answer = post("/completion", json={"prompt": "hello", "n_predict": 3, "cache_prompt": True}).json()
    assert answer["tokens_predicted"] == 3 and answer["stop_type"] == "limit" and answer["timings"]["predicted_n"] == 3
    lines = post("/completion", json={"prompt": "hello", "n_predict": 3, "stream": True}).text.split("\n\n")[:-1]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert [chunk["stop"] for chunk in chunks] == [False] * 3 + [True]
    for path, body in (("/completion", {"n_predict": 0}), ("/v1/completions", {"model": "tiny", "max_tokens": 0})):
        answer = post(path, json={"prompt": "hello"} | body).json()  # the prompt is computed, and nothing is said
        assert answer["timings"]["predicted_n"] == 0 and answer["timings"]["prompt_n"] > 0
        assert answer.get("content", "") == "" and answer.get("choices", [{"text": ""}])[0]["text"] == ""
    props = live.http.get("/props").json()
    assert props["total_slots"] == 4 and "im_start" in props["chat_template"]
    assert len(live.http.get("/slots").json()) == 4
    metrics = live.http.get("/metrics").text
    assert re.search(r"^llamacpp:tokens_predicted_total \d+$", metrics, re.M)
    assert re.search(r'^gmoe_expert_hits_total\{model="tiny:latest",tier="host"\} \d+$', metrics, re.M)
    families = re.findall(r"^# TYPE (\S+)", metrics, re.M)
    assert len(families) == len(set(families)) and set(re.findall(r'tier="(\w+)"', metrics)) == {"host"}
    assert set(re.findall(r'action="(\w+)"', metrics)) >= {"load", "routed", "rerouted"}


def test_counters_outlive_their_model(live: Live) -> None:
    def predicted() -> int:
        text = live.http.get("/metrics").text
        return int(re.search(r"^llamacpp:tokens_predicted_total (\d+)$", text, re.M)[1])  # type: ignore[index]

    live.http.post("/completion", json={"prompt": "x", "n_predict": 2, "model": "tiny"})
    before = predicted()
    live.lines("/api/generate", {"model": "tiny", "keep_alive": 0})
    assert before > 0 and predicted() == before
    live.never_end("tiny")


def test_anthropics_routes(live: Live) -> None:
    body = {**SAID, "model": "tiny", "max_tokens": 4, "stop_sequences": ["zzzz"]}
    answer = live.http.post("/v1/messages", json=body).json()
    assert answer["stop_reason"] == "max_tokens" and answer["usage"]["output_tokens"] == 4
    counted = live.http.post("/v1/messages/count_tokens", json=body).json()["input_tokens"]
    assert counted == answer["usage"]["input_tokens"] + answer["usage"]["cache_read_input_tokens"]
    missing = live.http.post("/v1/messages", json=body | {"model": "none"})
    error = {"type": "not_found_error", "message": "model 'none' not found"}
    assert (missing.status_code, missing.json()) == (404, {"type": "error", "error": error})


def test_loading_is_told_to_those_who_ask(live: Live) -> None:
    live.lines("/api/generate", {"model": "tiny", "keep_alive": 0})
    load = live.service.load

    def slowly(path: Any, options: Any) -> Any:
        import time

        time.sleep(1.2)
        return load(path, options)

    live.service.host._load = slowly
    try:
        asked = {"model": "tiny", "prompt": "x", "progress": True, "options": {"num_predict": 2}}
        lines = live.lines("/api/generate", asked)
    finally:
        live.service.host._load = load
    assert [line.get("status") for line in lines[:2]] == ["loading model"] * 2 and lines[-1]["done"]
    live.never_end("tiny")


def test_what_was_decided_at_load_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with live_server(tmp_path, [write_model(tmp_path / "long.gguf")], RuntimeOptions(context=600)) as live:
        for _ in range(2):
            live.http.post("/completion", json={"model": "long", "prompt": "x", "n_predict": 1})
    said = [record.getMessage() for record in caplog.records if "trained" in record.getMessage()]
    assert len(said) == 1 and said[0].startswith("long:latest: the context is 600 tokens, more than the 512 tokens")


def test_the_description_names_every_route(live: Live) -> None:
    document = live.http.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    for path, operations in document["paths"].items():
        for method in operations:
            found = live.http.request(method, path.replace("{id}", "x").replace("{digest}", "x"), content=b"{")
            assert found.status_code != 405 and "404 page not found" not in found.text, path


def test_a_line_of_json_has_no_line_end_of_any_kind() -> None:
    text = "a\x85b\u2028c\u2029d\x1ce\nf\x0bg"
    line = to_bytes({"text": text}).decode()
    assert line.splitlines() == [line] and json.loads(line)["text"] == text
