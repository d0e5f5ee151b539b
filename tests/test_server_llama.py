"""llama-server's /completion: its options, done or refused by name, as functions and on a live server."""

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from gmoe.engine.sampling import SamplingParams
from gmoe.options import RuntimeOptions
from gmoe.server import anthropic, llama_text, ollama, openai, openai_text, responses
from gmoe.server.ask import Ask, End, Event, Piece, Refused, Usage
from gmoe.server.lacking import IDLE, KNOBS, LLAMA
from gmoe.server.llama_options import FIELDS
from tests.factory import write_model
from tests.live_server import Live, live_server

LACKING = [
    ("adaptive_target", 0.5, "it must be less than 0: the samplers"),
    ("n_indent", 2, "n_indent is 2, which is not supported; it must be 0"),
    ("post_sampling_probs", True, "post_sampling_probs is True, which is not supported; it must be false"),
    ("grammar_lazy", True, "it must be false"),
    ("lora", [{"id": 0, "scale": 0.5}], "lora is .*; it must be empty: there are no adapters"),
    ("image_data", [{"id": 1, "data": "x"}], "it must be empty: only text is read"),
    ("min_keep", "two", "min_keep: input should be a valid integer"),
    ("mirostat", "two", "mirostat: input should be a valid integer"),
]
NEUTRAL = {
    **{"adaptive_target": -1.0, "n_indent": 0, "post_sampling_probs": False},
    **{"grammar_lazy": False, "lora": [{"id": 0, "scale": 0}], "image_data": []},
}


def parsed(**body: Any) -> Ask:
    return llama_text.parse_completion({"prompt": "x"} | body, "m")


def said(**body: Any) -> Ask:
    return openai.parse_chat({"model": "m", "messages": [{"role": "user", "content": "x"}]} | body)


@pytest.mark.parametrize("ask", [parsed, said])
@pytest.mark.parametrize(("name", "value", "sentence"), LACKING)
def test_an_option_that_is_lacking_is_refused_by_name(ask: Any, name: str, value: Any, sentence: str) -> None:
    with pytest.raises(Refused, match=sentence) as refused:
        ask(**{name: value})
    assert refused.value.status == 400 and "\n" not in refused.value.text


@pytest.mark.parametrize("ask", [parsed, said])
def test_options_that_ask_for_nothing_are_taken(ask: Any) -> None:
    assert set(NEUTRAL) == set(LLAMA)
    knobs = dict.fromkeys(KNOBS, 3) | dict.fromkeys(LLAMA)  # of what is off; null is as good as left out
    assert ask(**NEUTRAL).warnings == ask(**knobs).warnings == []
    assert ask(**{name: next(iter(values)) for name, values in IDLE.items()}).warnings == []


def test_the_server_knows_every_sampler() -> None:
    others = set("max_tokens samplers seed stop logit_bias logprobs".split())
    others |= set("grammar json_schema grammar_after grammar_unless".split())
    assert {*FIELDS} | others == {field.name for field in fields(SamplingParams)}


def test_what_llama_cpp_takes_for_off_is_taken_so() -> None:
    assert parsed(top_p=2, typical_p=1.5, top_k=-1).sampling == {"top_p": 1.0, "typical_p": 1.0, "top_k": 0}


def test_the_other_dialects_tell_what_nobody_knows_too() -> None:
    asked = {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1, "metadata": {}}
    assert anthropic.parse(asked | {"container": "c"}).warnings == ["invalid option provided: container"]
    for parse in (ollama.parse_generate, ollama.parse_chat):
        warnings = parse(
            {"model": "m", "temperature": 0, "_debug_render_only": False, "options": {"top_q": 1}}
        ).warnings
        assert warnings == ["invalid option provided: temperature", "invalid option provided: top_q"]
    given = {"model": "m", "input": "x", "store": False, "moon": 1}
    assert responses.parse(given).warnings == ["invalid option provided: moon"]
    with pytest.raises(Refused, match="prompt is not supported: this server keeps nothing of a request"):
        responses.parse({"model": "m", "input": "x", "prompt": {"id": "p"}})


@pytest.mark.parametrize("ask", [parsed, said])
def test_options_that_change_nothing_and_those_nobody_knows_are_told(ask: Any) -> None:
    idle = {"id_slot": 2, "n_keep": 5, "n_cache_reuse": 256, "backend_sampling": True}
    assert ask(**idle).warnings == [f"{name} changes nothing here" for name in idle]
    assert ask(**{"top_q": 1, "a b\n": 2}).warnings == [
        "invalid option provided: top_q", "invalid option provided: 'a b\\n'"
    ]  # fmt: skip


def test_openais_own_options_are_told_from_those_for_its_service() -> None:
    assert said(user="u", store=True, metadata={}, service_tier="auto", parallel_tool_calls=True).warnings == []
    assert said(parallel_tool_calls=False).one_call and not said(parallel_tool_calls=True).one_call
    for name, value in (
        ("functions", [{"name": "f"}]), ("audio", {"voice": "a"}), ("modalities", ["text", "audio"]),
        ("web_search_options", {}), ("best_of", 2),
    ):  # fmt: skip
        with pytest.raises(Refused, match=f"^{name} is .*, which is not supported; it must be "):
            openai_text.parse_completion({"model": "m", "prompt": "x", name: value})


def test_samplers_are_names_or_letters() -> None:
    usual = ["penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"]
    for ask in (parsed, said):
        assert ask(samplers=usual).sampling["samplers"] == SamplingParams().samplers
        assert ask(samplers=["temperature", "typical_p", "top_k"]).sampling["samplers"][1] == "typical_p"
        assert ask(samplers="edskypmxt").sampling["samplers"] == SamplingParams().samplers
        assert ask(samplers=[]).sampling["samplers"] == ()
        for wrong in (["infill"], "i", ["top_k", "sorcery"]):
            with pytest.raises(Refused, match="samplers: .* is not supported; the samplers are penalties, dry, top_n_"):
                ask(samplers=wrong)


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ["a"]),
        (["a"], ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([1, "a", 2], [[1, "a", 2]]),
        (["a", 1], [["a", 1]]),
        (["a", [1, 2], ["b", 3], {"prompt_string": "c"}], ["a", [1, 2], ["b", 3], "c"]),
        ({"prompt_string": "a", "multimodal_data": []}, ["a"]),
    ],
)
def test_prompts_in_all_their_shapes(prompt: Any, prompts: list[Any]) -> None:
    ask = parsed(prompt=prompt)
    assert [part.prompt for part in ask.parts or [ask]] == prompts


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ([], "prompt: it is empty"),
        ({"text": "a"}, "prompt: each must be a text, or a list of token ids and texts"),
        ([1, [2]], "prompt: each must be"),
        ({"prompt_string": "a", "multimodal_data": ["x"]}, '"m" does not support image input'),
    ],
)
def test_prompts_that_are_none(prompt: Any, sentence: str) -> None:
    with pytest.raises(Refused, match=sentence):
        parsed(prompt=prompt)


def test_openais_names_are_read_where_llama_servers_are_missing() -> None:
    assert parsed(max_tokens=3, n=2, logprobs=4).sampling == {"max_tokens": 3, "logprobs": 4}
    assert len(parsed(n=2).parts) == 2 and not parsed(n=2, n_cmpl=1).parts
    assert parsed(max_tokens=3, n_predict=5).sampling == {"max_tokens": 5}


def test_fields_are_chosen_by_their_paths() -> None:
    paths = ["content", "generation_settings/top_k", "timings/none", "content/deeper", "prompt"]
    params = SamplingParams(top_k=7, logit_bias={5: float("-inf")})
    events: list[Event] = [Piece("Hé"), End("length", Usage(), prompt="x", params=params, n_ctx=9)]
    (whole,) = llama_text.render_completion(parsed(response_fields=paths), iter(events))
    assert whole == {"content": "Hé", "generation_settings/top_k": 7, "prompt": "x"}
    piece, last = llama_text.render_completion(parsed(response_fields=paths, stream=True), iter(events))
    assert isinstance(piece, dict) and piece["content"] == "Hé" and piece["stop"] is False
    assert last == whole | {"content": ""}
    (all_of_it,) = llama_text.render_completion(parsed(n_predict=4), iter(events))
    assert isinstance(all_of_it, dict) and all_of_it["generation_settings"]["n_predict"] == 4
    assert all_of_it["generation_settings"]["logit_bias"] == [{"token": 5, "bias": False}]
    json.dumps(all_of_it, allow_nan=False)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    home = tmp_path_factory.mktemp("home")
    with live_server(home, [write_model(home / "tiny.gguf")], RuntimeOptions(context=256)) as live:
        live.never_end("tiny")
        yield live


def ask(live: Live, path: str = "/completion", **body: Any) -> Any:
    response = live.http.post(path, json={"model": "tiny", "prompt": "hello", "temperature": 0, "n_predict": 6} | body)
    assert response.status_code == 200, response.text
    return response.json()


def lines(live: Live, path: str = "/completion", **body: Any) -> list[Any]:
    asked = {"model": "tiny", "prompt": "hello", "temperature": 0, "stream": True} | body
    texts = [line.removeprefix("data: ") for line in live.http.post(path, json=asked).text.split("\n\n")[:-1]]
    return [json.loads(text) for text in texts if text != "[DONE]"]


def test_several_prompts_are_a_list_of_results(live: Live) -> None:
    ids = live.http.post("/tokenize", json={"model": "tiny", "content": "and"}).json()["tokens"]
    prompts = ["hello", [*ids, *ids], ["hello", *ids]]
    alone = [ask(live, prompt=[prompt] if isinstance(prompt, str) else prompt) for prompt in prompts]
    together = ask(live, prompt=prompts)
    assert [one["index"] for one in together] == [0, 1, 2]
    assert [one["content"] for one in together] == [one["content"] for one in alone]
    assert len({one["content"] for one in together}) == 3
    assert alone[2]["tokens_evaluated"] == alone[0]["tokens_evaluated"] + len(ids)
    twice = ask(live, prompt=["hello", "and"], n_cmpl=2, response_fields=["index", "tokens_predicted"])
    assert twice == [{"index": n, "tokens_predicted": 6} for n in range(4)]
    chunks = lines(live, prompt=["hello", "and"], n_predict=4)
    for n, prompt in enumerate(("hello", "and")):
        of = [chunk for chunk in chunks if chunk["index"] == n]
        assert [chunk["stop"] for chunk in of] == [False] * 4 + [True]
        assert "".join(chunk["content"] for chunk in of) == ask(live, prompt=prompt, n_predict=4)["content"]


def forced(live: Live, text: str) -> list[list[float]]:
    """A bias that lets only the first token of `text` be said."""
    (id, *_) = live.http.post("/tokenize", json={"model": "tiny", "content": text}).json()["tokens"]
    return [[id, 1000.0]]


def test_time_ends_an_answer_with_its_line(live: Live) -> None:
    line, word = forced(live, "\n"), forced(live, "hello")
    answer = ask(live, n_predict=200, t_max_predict_ms=1, logit_bias=line)
    assert 1 < answer["tokens_predicted"] < 200 and answer["content"] == "\n" * answer["tokens_predicted"]
    assert (answer["stop_type"], answer["has_new_line"], answer["truncated"]) == ("limit", True, False)
    assert answer["generation_settings"]["t_max_predict_ms"] == 1
    for more in ({"logit_bias": word, "t_max_predict_ms": 1}, {"logit_bias": line, "t_max_predict_ms": 0}):
        assert ask(live, n_predict=60, **more)["tokens_predicted"] == 60
    said = ask(live, "/v1/completions", max_tokens=200, t_max_predict_ms=1, logit_bias={str(line[0][0]): 1000})
    assert said["usage"]["completion_tokens"] < 200 and said["choices"][0]["finish_reason"] == "length"


def test_the_stop_text_that_is_named_is_the_one_where_the_answer_was_cut(live: Live) -> None:
    one_token = {"logit_bias": forced(live, "hello")}  # "he"
    for stops in (["e", "he", "h"], ["h", "he", "e"]):
        answer = ask(live, stop=stops, **one_token)
        assert (answer["content"], answer["tokens_predicted"]) == ("", 1)
        assert (answer["stop_type"], answer["stopping_word"]) == ("word", "he")
    answer = ask(live, stop=["he h", "eh"], **one_token)
    assert (answer["content"], answer["stopping_word"]) == ("h", "eh")
    assert ask(live, stop=["x"], **one_token)["stopping_word"] == ""


def test_samplers_count_in_the_order_they_are_named(live: Live) -> None:
    greedy = ask(live)["content"]
    assert ask(live, samplers=["top_k"], top_k=1, temperature=9.0)["content"] == greedy
    assert ask(live, samplers="kt", top_k=1, temperature=9.0)["content"] == greedy
    wild = ask(live, samplers=["temperature"], top_k=1, temperature=99.0, seed=1)
    assert wild["content"] != greedy and wild["generation_settings"]["samplers"] == ["temperature"]
    assert ask(live)["generation_settings"]["samplers"][4] == "typ_p"


def test_the_prompt_s_progress_is_told_where_it_is_asked_for(live: Live) -> None:
    prompt = live.http.post("/tokenize", json={"content": "hello and the world " * 40}).json()["tokens"][:100]
    for path, more in (("/completion", {"n_predict": 2}), ("/v1/completions", {"max_tokens": 2})):
        body = {"model": "tiny", "prompt": prompt, "return_progress": True, "cache_prompt": False} | more
        chunks = lines(live, path, **body)
        told = [chunk["prompt_progress"] for chunk in chunks if "prompt_progress" in chunk]
        assert told[-1] | {"time_ms": 0} == {"total": 100, "cache": 0, "processed": 100, "time_ms": 0}
        counts = [one["processed"] for one in told]
        assert counts == sorted(set(counts)) and all(one["time_ms"] > 0 for one in told)
        again = lines(live, path, **body | {"cache_prompt": True})
        assert next(chunk["prompt_progress"]["cache"] for chunk in again if "prompt_progress" in chunk) == 96
        silent = lines(live, path, **body | {"return_progress": False})
        whole = live.http.post(path, json=body).json()
        assert all("prompt_progress" not in chunk for chunk in (*silent, whole))
    chat = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 1, "return_progress": True}
    last = [chunk for chunk in lines(live, "/v1/chat/completions", **chat) if "prompt_progress" in chunk][-1]
    assert last["prompt_progress"]["processed"] == last["prompt_progress"]["total"] > 1
    assert last["choices"][0]["delta"] == {}


def test_the_newer_samplers_count(live: Live) -> None:
    greedy = ask(live, n_predict=16)["content"]
    spared = ask(live, n_predict=16, dry_multiplier=50, dry_allowed_length=0, dry_sequence_breakers=["z"])
    assert spared["content"] != greedy
    assert spared["generation_settings"]["dry_sequence_breakers"] == ["z"]
    hot = {"temperature": 9.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 4}
    plain = ask(live, **hot)["content"]
    assert ask(live, **hot, top_n_sigma=1e-9)["content"] == ask(live)["content"] != plain
    for name, value in (("xtc_probability", 1.0), ("mirostat", 1), ("mirostat", 2)):
        more = {"xtc_threshold": 0.001, "mirostat_tau": 0.5, name: value}
        changed = ask(live, **hot, **more)
        assert changed["content"] != plain and changed["generation_settings"][name] == value
        assert changed["content"] == ask(live, **hot, **more)["content"]
    said = live.http.post("/v1/completions", json={"model": "tiny", "prompt": "x", "mirostat": 3})
    assert said.status_code == 400 and said.json()["error"]["message"] == "mirostat is 3; it must be between 0 and 2"


def test_without_a_name_the_only_model_is_meant_once_the_last_used_one_is_gone(tmp_path: Path) -> None:
    with live_server(tmp_path, [], RuntimeOptions(context=256)) as live:
        live.http.post("/api/copy", json={"source": "demo", "destination": "x"})
        assert live.http.post("/tokenize", json={"content": "a"}).json()["error"]["message"] == "model is required"
        asked = {"model": "x", "prompt": "a", "n_predict": 1}
        assert live.http.post("/completion", json=asked).json()["model"] == "x"
        assert live.http.post("/completion", json={**asked, "model": ""}).json()["model"] == "x:latest"
        live.http.request("DELETE", "/api/delete", json={"model": "x"})
        assert live.http.post("/tokenize", json={"content": "a"}).json()["tokens"]


def test_no_slot_is_saved(live: Live) -> None:
    said = live.http.post("/slots/0?action=save", json={"filename": "x"})
    assert said.status_code == 501 and said.json()["error"]["type"] == "not_supported_error"
    assert "slots are not saved" in said.json()["error"]["message"]


def test_a_top_k_below_0_is_off_under_v1_too() -> None:
    assert said(top_k=-1).sampling == {"top_k": 0} and said().sampling == {}


def test_a_bias_is_for_ids_and_for_texts(live: Live) -> None:
    ids = live.http.post("/tokenize", json={"model": "tiny", "content": "hello and"}).json()["tokens"]
    for bias in ([["hello and", 1000]], {"hello and": 1000}, [[id, 1000] for id in ids]):
        answer = ask(live, logit_bias=bias, return_tokens=True)
        assert (
            set(answer["tokens"]) <= set(ids)
            and answer["tokens"] == ask(live, logit_bias=bias, return_tokens=True)["tokens"]
        )
    (first, *_) = answer["tokens"]
    none_of_it = ask(live, logit_bias=[["hello and", 1000], [first, False]], return_tokens=True)["tokens"]
    assert set(none_of_it) <= set(ids) - {first}
    for wrong in ([[1]], [["a", "b"]], [["a", 1, 2]], [[1.5, 1]], [[True, 1]]):
        response = live.http.post("/completion", json={"model": "tiny", "prompt": "x", "logit_bias": wrong})
        assert response.status_code == 400 and "logit_bias: " in response.json()["error"]["message"]


def test_a_prompt_that_is_too_long_is_refused_and_a_full_context_said(live: Live) -> None:
    response = live.http.post("/completion", json={"model": "tiny", "prompt": [5] * 300})
    error = {
        "code": 400,
        "message": "the prompt has 300 tokens, the context holds 256",
        "type": "invalid_request_error",
    }
    assert (response.status_code, response.json()["error"]) == (400, error)
    full = ask(live, prompt=[5] * 250, n_predict=-1)
    assert full["generation_settings"]["n_predict"] == -1
    assert (full["tokens_predicted"], full["truncated"], full["stop_type"]) == (6, True, "limit")
    assert ask(live, prompt=[5] * 200)["truncated"] is False


def test_figures_come_with_each_token_where_they_are_asked_for(live: Live) -> None:
    *pieces, _ = lines(live, n_predict=3, timings_per_token=True)
    assert [piece["timings"]["predicted_n"] for piece in pieces] == [1, 2, 3]
    pieces = [one for one in lines(live, "/v1/completions", max_tokens=3, timings_per_token=True) if "timings" in one]
    counts = [piece["timings"]["predicted_n"] for piece in pieces]  # half a character is no piece
    assert counts == sorted(set(counts)) and set(counts) <= {1, 2, 3} and counts
    assert all("timings" not in piece for piece in lines(live, n_predict=3)[:-1])


def test_what_is_computed_is_computed_again_where_that_is_asked_for(live: Live) -> None:
    prompt = list(range(5, 105))
    ask(live, prompt=prompt)
    assert ask(live, prompt=prompt)["timings"]["cache_n"] >= 64
    again = ask(live, prompt=prompt, cache_prompt=False)
    assert again["timings"]["cache_n"] == again["tokens_cached"] == 0 and again["timings"]["prompt_n"] == 100


def test_refusals_and_warnings_reach_client_and_log(live: Live, caplog: pytest.LogCaptureFixture) -> None:
    response = live.http.post("/completion", json={"model": "tiny", "prompt": "x", "n_indent": 2})
    assert response.status_code == 400 and response.json()["error"]["message"].startswith("n_indent is 2, which is")
    ask(live, id_slot=1, top_q=3)
    assert ["id_slot changes nothing here", "invalid option provided: top_q"] == [
        record.getMessage() for record in caplog.records if record.name == "gmoe.server"
    ]
    defaults = live.http.get("/props").json()["default_generation_settings"]["params"]
    assert defaults["min_p"] == 0.05 and defaults["samplers"][-1] == "temperature"
