"""LLM: text in, events out, on a tiny model."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gmoe
from gmoe.gguf.file import GGUFFile
from gmoe.library.create import create
from gmoe.library.manifest import Library
from gmoe.library.modelfile import parse_modelfile
from gmoe.library.name import ModelName
from gmoe.tokenizer import sandbox
from gmoe.tokenizer.chat import ChatTemplate, TemplateError
from gmoe.tokenizer.stop import StopMatcher
from gmoe.tokenizer.stream import Detokenizer
from tests.factory import write_model

GREEDY = gmoe.SamplingParams(max_tokens=12, temperature=0)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    with gmoe.LLM.load(write_model(tmp_path_factory.mktemp("llm") / "m.gguf"), gmoe.RuntimeOptions(context=128)) as llm:
        yield llm


def test_events_and_their_end(llm: gmoe.LLM) -> None:
    events = list(llm.generate("hello", GREEDY))
    assert [event.finish_reason for event in events] == [None] * (len(events) - 1) + [events[-1].finish_reason]
    assert events[-1].finish_reason in ("length", "stop")
    ids = [event.token_id for event in events]
    detokenizer = Detokenizer(llm.tokenizer)
    assert "".join(event.text for event in events) == "".join(map(detokenizer.push, ids)) + detokenizer.flush()
    assert ids == [event.token_id for event in llm.generate("hello", GREEDY)]


def test_an_answer_follows_its_grammar(llm: gmoe.LLM) -> None:
    params = gmoe.SamplingParams(grammar='root ::= "lo" [x-z]{3}', seed=1)
    events = list(llm.generate("hello", params))
    text = "".join(event.text for event in events)
    assert text[:2] == "lo" and len(text) == 5 and set(text[2:]) <= set("xyz")
    assert events[-1].finish_reason == "stop"
    with pytest.raises(ValueError, match="the grammar has no rule named root"):
        next(iter(llm.generate("hello", gmoe.SamplingParams(grammar='x ::= "a"'))))


def test_embeddings_are_pooled_hidden_states(llm: gmoe.LLM) -> None:
    ids = llm.tokenizer.encode("hello and the world")
    last, mean = llm.embed(ids, "last"), llm.embed(ids)
    assert last.shape == mean.shape == (llm.hparams.n_embd,)
    logits = llm.model.logits(torch.from_numpy(last)[None])[0].numpy()
    np.testing.assert_allclose(logits, llm.logits(ids)[-1], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(mean, np.mean([llm.embed(ids[: n + 1], "last") for n in range(len(ids))], 0), atol=1e-4)


def test_counters_grow(llm: gmoe.LLM) -> None:
    before = llm.stats
    n = len(list(llm.chat([{"role": "user", "content": "hello"}], GREEDY)))
    after = llm.stats
    assert after["generated_tokens"] - before["generated_tokens"] == n
    assert after["prompt_tokens"] > before["prompt_tokens"]
    assert after["host"]["hits"] > before["host"]["hits"] and after["host"]["misses"] == 0


def test_what_chat_cannot_use_is_refused(llm: gmoe.LLM) -> None:
    with pytest.raises(TypeError, match="max_tokens is no argument of chat, but a field of SamplingParams"):
        llm.chat([{"role": "user", "content": "hello"}], max_tokens=2)
    with pytest.raises(ValueError, match="messages must be a list of mappings"):
        llm.chat("hello")


def test_a_stop_text_ends_the_answer(llm: gmoe.LLM) -> None:
    whole = "".join(event.text for event in llm.generate("hello", GREEDY))
    stop = whole[2:4]
    events = list(llm.generate("hello", gmoe.SamplingParams(max_tokens=12, temperature=0, stop=(stop,))))
    assert "".join(event.text for event in events) == whole[: whole.index(stop)]
    assert events[-1].finish_reason == "stop"


def test_a_closed_answer_ends_with_an_abort_and_what_was_held_back(llm: gmoe.LLM) -> None:
    whole = "".join(event.text for event in llm.generate("hello", GREEDY))
    stop = whole[:2] + "\0never said"
    stream = llm.generate("hello", gmoe.SamplingParams(temperature=0, stop=(stop,)))
    first = next(stream)
    stream.close()
    last = next(stream)
    assert (last.token_id, last.finish_reason) == (None, "abort") and list(stream) == []
    assert first.finish_reason is None and whole.startswith(first.text + last.text) and first.text + last.text


def test_who_waits_for_an_answer_hears_that_another_thread_has_closed_it(llm: gmoe.LLM) -> None:
    stream = llm.run([5], gmoe.SamplingParams(temperature=0), ignore_end=True)
    next(stream)
    with ThreadPoolExecutor(1) as pool:
        events = pool.submit(list, stream)
        stream.close()
        *before, last = events.result(10)
    assert last.finish_reason in ("abort", "length") and all(event.finish_reason is None for event in before)


def test_stop_texts_are_found_across_pieces() -> None:
    matcher = StopMatcher(["</end>", "##"])
    assert [matcher.push(piece) for piece in ("a<", "/en", "x </e", "nd> after")] == ["a", "", "</enx ", ""]
    assert matcher.stopped
    matcher = StopMatcher(["##"])
    assert (matcher.push("a#"), matcher.flush(), matcher.stopped) == ("a", "#", False)
    for stops in (["d", "bcd", "bc", "cd"], ["bc", "cd", "bcd", "d"]):
        matcher = StopMatcher(stops)
        assert (matcher.push("a"), matcher.push("bcd"), matcher.found) == ("a", "", "bcd")


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"device": "cuda"}, "device='cuda' (needs a PyTorch that was built with CUDA|cannot be used: )"),
        ({"device": "cpu", "gpu_memory": "1GiB"}, "gpu_memory='1GiB' needs device='cuda'"),
        ({"evict": "belady"}, "evict='belady' is not available"),
        ({"policy": {"t1": 0.5}}, "no knob is called 't1'; the chosen policies have"),
    ],
)
def test_what_is_not_there_yet_is_refused_and_not_ignored(
    tmp_path: Path, options: dict[str, object], what: str
) -> None:
    path = write_model(tmp_path / "m.gguf")
    with pytest.raises(ValueError, match=what):
        gmoe.LLM.load(path, gmoe.RuntimeOptions(**options))  # type: ignore[arg-type]


@pytest.mark.parametrize("ids", [[1, 2.5], [1.0], "hi", [None], [-1], [10**9]])
def test_what_is_no_token_is_refused(llm: gmoe.LLM, ids: Any) -> None:
    with pytest.raises(ValueError, match=r"the token id .* is (no whole number|not one of)"):
        llm.logits(ids)


def test_ids_may_be_an_array(llm: gmoe.LLM) -> None:
    ids: Any = np.array([3, 4], np.int32)
    assert np.array_equal(llm.logits(ids), llm.logits([3, 4]))


def test_a_trace_that_is_not_there_is_one_sentence(llm: gmoe.LLM, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nope\.npz: No such file or directory"):
        gmoe.LLM.load(llm.file.path, gmoe.RuntimeOptions(trace=tmp_path / "nope.npz"))


def test_a_prompt_longer_than_the_context_is_refused(llm: gmoe.LLM) -> None:
    with pytest.raises(ValueError, match="the prompt has .* tokens, the context holds 128"):
        next(llm.generate("a b " * 200))


YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0, "rope.scaling.original_context_length": 512}


@pytest.mark.parametrize(
    ("metadata", "context", "reach"),
    [({}, 512, None), ({}, 513, 512), (YARN, 1024, None), (YARN, 1025, 1024), ({"rope.scale_linear": 4.0}, 2048, None)],
)
def test_a_context_beyond_what_the_model_was_trained_for_is_said_once(
    tmp_path: Path, metadata: dict[str, object], context: int, reach: int | None
) -> None:
    path = write_model(tmp_path / "m.gguf", metadata=metadata)
    with gmoe.LLM.load(path, gmoe.RuntimeOptions(context=context)) as llm:
        said = [notice for notice in llm.notices if "trained" in notice]
    if reach is None:
        assert not said
    else:
        assert said == [
            f"the context is {context} tokens, more than the {reach} tokens that the model was trained for: "
            "answers may get worse"
        ]


def test_what_stands_in_for_a_template_and_a_pre_tokenizer_is_said(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", template=None)
    path.write_bytes(path.read_bytes().replace(b"tokenizer.ggml.pre", b"tokenizer.ggml.per"))
    with gmoe.LLM.load(path) as llm:
        for said in ("no chat template; ChatML is used", "no tokenizer.ggml.pre: text is cut as for 'default'"):
            assert any(said in notice for notice in llm.notices)
        text = llm.template.render([{"role": "user", "content": "Hi"}])
        assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
        "{% for a in range(10 ** 12) %}{% endfor %}",
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''.__class__ }}",
        "{{ messages.append(1) }}",
        "{% if %}",
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[99].content }}",
    ],
)
def test_a_template_that_misbehaves_is_one_sentence(
    llm: gmoe.LLM, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "SECONDS", 0.5)
    chat = ChatTemplate(template, llm.tokenizer, "evil.gguf")
    try:
        text = chat.render([{"role": "user", "content": "Hi"}])
    except TemplateError as error:
        assert str(error).startswith("evil.gguf: tokenizer.chat_template: the template cannot be rendered: ")
        assert "\n" not in str(error)
    else:
        assert text == ""  # jinja gives nothing for what its sandbox hides


@pytest.mark.parametrize("tensor", ["attn_q", "attn_k", "attn_v", "ffn_gate_inp"])
@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_broken_weights_are_said_and_the_file_is_named(tmp_path: Path, tensor: str, kv_type: str) -> None:
    path = write_model(tmp_path / "broken.gguf", "qwen3moe")
    with GGUFFile.open(path) as file:
        info = file.tensors[f"blk.0.{tensor}.weight"]
        with path.open("r+b") as broken:
            broken.seek(info.offset + 4 * 70)
            broken.write(np.float32("nan").tobytes())
    with gmoe.LLM.load(path, gmoe.RuntimeOptions(context=128, kv_type=kv_type)) as llm:
        with pytest.raises(ValueError, match="logits that are not numbers") as error:
            list(llm.generate("hello", GREEDY))
    assert str(error.value) == f"{path}: the model gave logits that are not numbers"


def test_tools_and_switches_reach_the_template(llm: gmoe.LLM) -> None:
    source = "{{ tools[0].name }} {{ enable_thinking }} {{ tools | tojson }}{% if bos_token %}!{% endif %}"
    text = ChatTemplate(source, llm.tokenizer, "f").render([], [{"name": "add"}], enable_thinking=False)
    assert text == 'add False [{"name": "add"}]!'


def test_a_model_is_a_file_or_a_name_of_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GMOE_HOME", str(tmp_path))
    with pytest.raises(ValueError, match="not found"):
        gmoe.LLM.load("no-such-model")
    with pytest.raises(ValueError, match="there is no such file"):
        gmoe.LLM.load(tmp_path / "none.gguf")


def test_a_model_of_the_library_brings_its_modelfile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GMOE_HOME", str(tmp_path / "home"))
    write_model(tmp_path / "m.gguf")
    text = (
        "FROM m.gguf\nSYSTEM lo\nMESSAGE user he\nMESSAGE assistant o\nPARAMETER num_predict 3\nPARAMETER num_ctx 64\n"
    )
    text += 'PARAMETER temperature 0\nTEMPLATE """{{ range .Messages }}{{ .Role }}:{{ .Content }} {{ end }}"""\n'
    text += "# gmoe: max_sequences 2\n"
    create(Library.default(), ModelName.parse("mine"), parse_modelfile(text), tmp_path)
    with gmoe.LLM.load("mine") as llm:
        assert (llm.context, llm.options.max_sequences) == (64, 2)
        stream = llm.chat([{"role": "user", "content": "hel"}])
        assert [event.finish_reason for event in stream] == [None, None, "length"]
        assert stream.n_prompt == len(llm.tokenizer.encode("system:lo user:he assistant:o user:hel "))
        assert len(list(llm.chat([{"role": "user", "content": "h"}], gmoe.SamplingParams(max_tokens=2)))) == 2
        assert llm.template.source.startswith("{{ range")
    with gmoe.LLM.load("mine", gmoe.RuntimeOptions(context=96)) as llm:
        assert llm.context == 96


def test_a_parser_of_ollama_alone_leaves_it_to_the_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GMOE_HOME", str(tmp_path / "home"))
    write_model(tmp_path / "m.gguf", template="{{ messages[0].content }}<think>")
    (tmp_path / "strange.gguf").write_bytes((tmp_path / "m.gguf").read_bytes().replace(b"qwen3moe", b"cogitoxx"))
    for name, file, parser in (("a", "m.gguf", "olmo3"), ("b", "m.gguf", "tomorrow"), ("c", "strange.gguf", "cogito")):
        text = f"FROM {file}\nTEMPLATE {{{{ .Prompt }}}}\nRENDERER {parser}\nPARSER {parser}\n"
        create(Library.default(), ModelName.parse(name), parse_modelfile(text), tmp_path)
    for name, parser in (("a", "olmo3"), ("b", "tomorrow")):
        with gmoe.LLM.load(name) as llm:
            assert llm.dialect == "think" and llm.template.source == "{{ messages[0].content }}<think>"
            assert f"PARSER {parser} is not known: answers are read as the chat template shows" in llm.notices
    with pytest.raises(ValueError, match="general.architecture: 'cogitoxx'; supported: "):
        gmoe.LLM.load("c")


def test_a_template_beyond_the_subset_is_said_and_the_file_s_own_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GMOE_HOME", str(tmp_path / "home"))
    write_model(tmp_path / "m.gguf")
    text = 'FROM m.gguf\nTEMPLATE {{ define "x" }}{{ end }}'
    create(Library.default(), ModelName.parse("mine"), parse_modelfile(text), tmp_path)
    with gmoe.LLM.load("mine", gmoe.RuntimeOptions(context=64)) as llm:
        assert llm.notices[0].startswith("the model's TEMPLATE cannot be used")
        assert list(llm.chat([{"role": "user", "content": "hello"}], GREEDY))


def test_each_model_has_the_threads_it_asked_for(tmp_path: Path) -> None:
    path, before = write_model(tmp_path / "m.gguf"), torch.get_num_threads()
    with (
        gmoe.LLM.load(path, gmoe.RuntimeOptions(context=64, threads=1)) as one,
        gmoe.LLM.load(path, gmoe.RuntimeOptions(context=64, threads=3)) as three,
    ):
        assert [llm._loop.call(torch.get_num_threads) for llm in (one, three)] == [1, 3]
    torch.set_num_threads(before)


def test_a_recorder_begins_between_passes(llm: gmoe.LLM) -> None:
    with ThreadPoolExecutor() as pool:
        asked = [pool.submit(lambda: list(llm.run([5] * 60, GREEDY))) for _ in range(4)]
        recorders = [llm.record() for _ in range(30)]
        assert all(answer.result() for answer in asked)
    list(llm.run([5], GREEDY))
    traces = [recorder.trace() for recorder in recorders]
    assert all(len(trace) and trace.rows["step"][0] == 0 for trace in traces)
    llm.steps.listeners.clear()
    llm.dispatch.observers.clear()


def test_the_working_set_hears_of_the_task(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf")
    with gmoe.LLM.load(path, gmoe.RuntimeOptions(context=128)) as whole:
        budget = whole.budget
        half = budget.fixed + sum(group.experts // 2 * group.slot_bytes for group in budget.groups)
    some = gmoe.RuntimeOptions(context=128, host_memory=str(half), working_set="task", prefetch="none", evict="lru")
    with gmoe.LLM.load(path, some) as llm:
        for task in ("python", "poems", "python"):
            list(llm.run([1, 2, 3], GREEDY, ignore_end=True, task=task))
        assert llm.dispatch.working_set.requests == {"python": 2, "poems": 1}  # type: ignore[attr-defined]
