"""Grammars and schemas as masks: what they accept, what they refuse, and answers that follow them."""

import json
from functools import cache

import numpy as np
import pytest
from toy_tokenizers import byte_level, sentence_pieces

from gmoe.engine.constraint import Constraint, Grammars
from gmoe.engine.gbnf import GrammarError, gbnf_to_lark
from gmoe.engine.sampler import Sampler
from gmoe.engine.sampling import SamplingParams
from gmoe.engine.schema import MOST_INTEGER, bounded
from gmoe.tokenizer.tokenizer import Tokenizer

JSON_GBNF = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"""
GBNF = [  # grammar, what it accepts, what it does not
    ('root ::= "yes" | "no"', ["yes", "no"], ["", "y", "yess", "maybe"]),
    ("root ::= [a-z]+", ["a", "abc"], ["", "A", "a1"]),
    ('root ::= word "x"\nword ::= [a-z]+', ["ax", "xx", "axxx"], ["x", "a"]),  # characters are not greedy
    ('root ::= "(" root ")" | "x" | [a-z] "y"', ["x", "((x))", "(xy)", "qy"], ["(x", "x)", "", "q"]),
    ('root ::= [^"\\\\] . [\\x41-\\x43\\u00e9]', ["xyA", "é\né", "a\\C"], ['"aA', "abD", "ab"]),
    ('root ::= "a"{2} "b"{1,2} "c"{0,} "d"?', ["aab", "aabbccd"], ["ab", "aabbb", "aabdd"]),
    (
        'root ::= ("a" |\n  "b") "c"? rest # comment\n\n# another\nrest ::= "é\\n\\"\\\\"',
        ['acé\n"\\', 'bé\n"\\'],
        ["ac"],
    ),
    ('root ::= "" | "a" root', ["", "aaaa"], ["b"]),
    ("root ::= [a-z-]+", ["a-b"], ["_"]),
    ('root ::= root "," [0-9] | [0-9]', ["1", "1,2,3"], ["", ",1", "1,"]),  # a rule may begin with itself
    ('root ::= loop "x"\nloop ::= loop* | "(" loop ")"', ["x", "()x", "()(())x"], ["", "(x"]),
    ('root ::= "a" "b"{0} "c"{0,0}', ["a"], ["ab", "ac"]),
    ("root ::= root-2\nroot-2 ::= [\\]] [[]", ["]["], ["[]"]),
    (JSON_GBNF, ['{"a": [1, -2.5e3, {"b": "\\u00e9 x"}], "c": null}', "{}"], ["[]", '{"a" 1}', '{"a": 01}', "{"]),
]
BAD = [
    ('start ::= "a"', "the grammar has no rule named root"),
    ("root ::= other", "the grammar has no rule named other, which root uses"),
    ('root ::= "a', "line 1 of the grammar: the grammar ends within quotes or brackets"),
    ('root ::= "a"\nx : "b"', "line 2 of the grammar: '::=' is expected"),
    ('root ::= ("a"', "a parenthesis is not closed"),
    ('root ::= "a")', "')' is not expected here"),
    ("root ::= [z-a]", "the range z-a is upside down"),
    ("root ::= []", "a pair of brackets is empty"),
    ('root ::= "\\q"', "the escape '\\\\q' is unknown"),
    ('root ::= "\\ud800"', "is no character"),
    ('root ::= "a"{3,2}', "{3,2} is upside down"),
    ('root ::= "a"{x}', "a repetition is written"),
    ('root ::= * "a"', "there is nothing to repeat"),
    ("root ::= <think>", "'<' is not expected here"),
    ("root ::= " + "(" * 300, "more than 200 parentheses"),
    ("root ::= root", "the grammar's rule root never ends: all its alternatives lead back to itself"),
    ('root ::= "a" list | "b"\nlist ::= list "," [0-9]', "the grammar's rule list never ends"),
    ('root ::= "a" | x\nx ::= "(" y ")"\ny ::= x+ | "," x{1,2}', "the grammar's rule x never ends"),
    ('root ::= "a" | x\nx ::= [^\\x00-\\U0010FFFF]', "line 2 of the grammar: brackets of the rule x match nothing"),
    ("root ::= [^\\uE000-\\U0010FFFFa-\\uD7FF\\x00-b]", "brackets of the rule root match nothing"),
    ("start: nothing", "the grammar cannot be used: "),
    ("no grammar at all", "the grammar cannot be used: "),
]


@cache
def tokenizer(kind: str) -> Tokenizer:
    return Tokenizer.from_gguf(byte_level() if kind == "bpe" else sentence_pieces(), kind)


@cache
def grammars(kind: str) -> Grammars:
    return Grammars(tokenizer(kind))


def bytes_of(kind: str) -> dict[bytes, int]:
    return {tokenizer(kind).token_bytes(id): id for id in reversed(range(tokenizer(kind).n_vocab))}


def follow(constraint: Constraint, ids: list[int], kind: str) -> bool:
    """Whether these tokens and then an end are a whole answer; `mask` and `allows` must never differ."""
    for id in ids:
        if not constraint.allows(id):
            return False
        constraint.accept(id)
    return constraint.complete or all(constraint.allows(end) for end in tokenizer(kind).end_ids)


def byte_ids(text: str, kind: str) -> list[int]:
    at = bytes_of(kind)
    return [at[bytes([byte])] for byte in text.encode()]


@pytest.mark.parametrize("kind", ["bpe", "spm"])
@pytest.mark.parametrize(("grammar", "good", "bad"), GBNF)
def test_gbnf(grammar: str, good: list[str], bad: list[str], kind: str) -> None:
    for texts, wanted in ((good, True), (bad, False)):
        for text in texts:
            constraint = grammars(kind).compile(SamplingParams(grammar=grammar))
            assert constraint is not None
            assert follow(constraint, byte_ids(text, kind), kind) is wanted, text


@pytest.mark.parametrize(
    "pattern",
    [
        "^((a{1000}){1000}){1000}$",
        "^a{1000000000000}$",
        r"^(\({300}(?:[)(]b|x{1}){300}){300,}y",
        "^a{300}{300}$",
    ],
)
def test_patterns_that_repeat_too_much_are_refused(pattern: str) -> None:
    for schema in (
        {"type": "string", "pattern": pattern},
        {"type": "object", "patternProperties": {pattern: {}}},
        {"not": {"anyOf": [{"items": {"pattern": pattern}}]}},
    ):
        with pytest.raises(GrammarError, match="^the json_schema .* its pattern '.*' come to over 50000$"):
            grammars("bpe").compile(SamplingParams(json_schema=schema))


@pytest.mark.parametrize(
    "pattern",
    [r"^a{50000}$", r"^([a-z]{1,100000} ){0,1000000}$", r"^\x{100000}[{9}(]{300}\p{L}{300}$", "^(a{300})(b{300})$"],
)
def test_patterns_that_repeat_little_are_used(pattern: str) -> None:
    schema = {"pattern": pattern, "const": {"pattern": "a{99999}"}, "properties": {"pattern": {"type": "string"}}}
    assert bounded(schema)["pattern"] == pattern


@pytest.mark.parametrize("grammar", ['root ::= ("a"{1500}){1500} "b"', 'root ::= a{300}\na ::= [ab] | ("c"{2,300} a)'])
def test_repetitions_within_one_another_have_a_bound(grammar: str) -> None:
    with pytest.raises(GrammarError, match="repetitions within one another come to more than 50000"):
        gbnf_to_lark(grammar)
    assert gbnf_to_lark('root ::= ("a"{200}){200} b{2000}\nb ::= "x"* root?')


def test_repetitions_of_many_rules_are_counted_at_once() -> None:
    for times in (1, 2):  # a long chain; and each rule twice, so that no way through them may be gone twice
        rules = [f"r{n} ::= {f'r{n + 1} ' * times}" for n in range(300)]
        assert gbnf_to_lark("\n".join(["root ::= r0", *rules, 'r300 ::= "a"']))
    chain = [f"r{n} ::= r{n + 1}{{2}}" for n in range(20)]
    with pytest.raises(GrammarError, match="come to more than 50000"):
        gbnf_to_lark("\n".join(["root ::= r0", *chain, 'r20 ::= "a"']))


def test_gbnf_with_the_model_s_own_tokens() -> None:
    text = '{"the": "The quick brown fox"}'
    constraint = grammars("bpe").compile(SamplingParams(grammar=JSON_GBNF))
    assert constraint is not None and follow(constraint, tokenizer("bpe").encode(text, add_special=False), "bpe")


@pytest.mark.parametrize(("grammar", "sentence"), BAD)
def test_a_bad_grammar_is_one_sentence(grammar: str, sentence: str) -> None:
    with pytest.raises(GrammarError) as error:
        grammars("bpe").compile(SamplingParams(grammar=grammar))
    assert sentence in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("schema", [{"type": "nonsense"}, {"$ref": "#/missing"}, {"type": "string", "pattern": "("}])
def test_a_bad_schema_is_one_sentence(schema: dict[str, str]) -> None:
    with pytest.raises(GrammarError, match="the json_schema cannot be used: "):
        grammars("bpe").compile(SamplingParams(json_schema=schema))


@pytest.mark.parametrize("schema", [{"type": "string"}, {"type": "string", "minLength": 6, "maxLength": 6}])
def test_any_character_may_be_escaped(schema: dict[str, object]) -> None:
    for text, wanted in (('"caf\\u00e9 \\uD83D\\uDE00"', True), ('"caf\\uD83D \\u0007"', False)):
        constraint = grammars("bpe").compile(SamplingParams(json_schema=schema))
        assert constraint is not None
        assert follow(constraint, byte_ids(text, "bpe"), "bpe") is wanted


def test_lark_is_taken_as_it_is() -> None:
    constraint = grammars("bpe").compile(SamplingParams(grammar='start: "a" | /[0-9]{3}/'))
    assert constraint is not None and follow(constraint, byte_ids("123", "bpe"), "bpe")


@pytest.mark.parametrize("kind", ["bpe", "spm"])
def test_random_answers_follow_their_schema(kind: str) -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 5},
            "n": {"type": "integer", "minimum": 0, "maximum": 99},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
        },
        "required": ["name", "n", "tags"],
        "additionalProperties": False,
    }
    own = tokenizer(kind)
    rng = np.random.default_rng(0)
    for seed in range(8):
        params = SamplingParams(json_schema=schema, seed=seed, temperature=1.5 * (seed % 2))
        constraint = grammars(kind).compile(params)
        assert constraint is not None
        sampler, ids = Sampler(params, constraint=constraint), [5]
        while not constraint.complete and len(ids) < 300:
            token = sampler.sample(rng.normal(0, 3, own.n_vocab + 7).astype(np.float32), ids)
            ids.append(token)
            if token in own.end_ids:
                break
        value = json.loads(b"".join(own.token_bytes(id) for id in ids[1:]))
        assert list(value) == ["name", "n", "tags"] and 0 <= value["n"] <= 99 and len(value["name"]) <= 5
        assert len(value["tags"]) <= 2 and set(value["tags"]) <= {"a", "b"}


A = {"a": {"type": "boolean"}}
CLOSED = [  # schema, what it accepts, what it does not
    ({"type": "object", "properties": A, "required": ["a"]}, ['{"a":true}'], ["{}", '{"a":true,"b":1}']),
    ({"properties": {}}, ["{}"], ['{"b":1}']),
    ({"properties": A, "additionalProperties": True}, ['{"a":true,"b":1}'], ['{"a":1}']),
    ({"properties": A, "required": ["a", "b"]}, ['{"a":true,"b":1}'], ['{"a":true}']),
    ({"type": "array", "items": {"properties": A}}, ['[{"a":true}]'], ['[{"c":true}]']),
    ({"properties": {"properties": {"properties": A}}}, ['{"properties":{"a":true}}'], ['{"properties":{"b":1}}']),
    ({"$ref": "#/$defs/x", "$defs": {"x": {"properties": A}}}, ['{"a":true}'], ['{"b":1}']),
    ({"anyOf": [{"properties": A}, {"type": "null"}]}, ['{"a":true}', "null"], ['{"b":1}']),
    ({"oneOf": [{"properties": A}, {"type": "null"}]}, ['{"a":true}', "null"], ['{"b":1}']),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, ["1", "1.5"], ['"x"']),  # of both as well
    ({"allOf": [{"properties": A}, {"properties": {"b": {}}}], "type": "object"}, ['{"a":true,"b":1}'], ['{"a":1}']),
    (
        {"properties": {"x": {"allOf": [{"$ref": "#/$defs/y"}]}}, "$defs": {"y": {"properties": A}}},
        ['{"x":{}}'],
        ['{"x":{"b":1}}'],
    ),
    (
        {"$ref": "#/$defs/x", "allOf": [{"properties": {"b": {}}}], "$defs": {"x": {"properties": A}}},
        ['{"a":true,"b":1}'],
        ['{"a":1}'],
    ),
    ({"type": "integer"}, [str(MOST_INTEGER), str(-MOST_INTEGER), "0"], [str(MOST_INTEGER + 1), "1.5"]),
    ({"type": ["integer", "null"]}, ["7", "null"], ["1" * 20]),
    ({"type": "string", "format": "path"}, ['"a b"'], ["7"]),
    ({"type": "string", "format": "date"}, ['"2026-11-27"'], ['"a b"']),
    ({"properties": {"format": {"const": {"format": "x"}}}}, ['{"format":{"format": "x"}}'], ['{"format":{}}']),
    ({"type": "integer", "minimum": 0}, ["1" * 20], ["-1"]),
]


@pytest.mark.parametrize(("schema", "good", "bad"), CLOSED)
def test_a_schema_has_an_end(schema: dict[str, object], good: list[str], bad: list[str]) -> None:
    for texts, wanted in ((good, True), (bad, False)):
        for text in texts:
            constraint = grammars("bpe").compile(SamplingParams(json_schema=schema))
            assert constraint is not None
            assert follow(constraint, byte_ids(text, "bpe"), "bpe") is wanted, text


@pytest.mark.parametrize("depth", [300, 3000])
def test_a_schema_that_is_nested_too_deeply_is_refused(depth: int) -> None:
    schema: dict[str, object] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    with pytest.raises(GrammarError, match="the json_schema cannot be used: (it is nested too deeply|recursion limit)"):
        grammars("bpe").compile(SamplingParams(json_schema=schema))


@pytest.mark.parametrize("keyword", ["allOf", "anyOf"])
def test_a_schema_that_is_none_is_refused_by_its_keyword(keyword: str) -> None:
    with pytest.raises(GrammarError, match=f"the json_schema cannot be used: {keyword} must be an array"):
        grammars("bpe").compile(SamplingParams(json_schema={keyword: 5}))


def test_a_schema_that_says_all_stays_as_it_is() -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "additionalProperties": {"type": "string"}}
    assert bounded(schema) == schema


def test_the_mask_is_what_allows_says_and_no_padding_of_the_model() -> None:
    constraint = grammars("bpe").compile(SamplingParams(grammar="root ::= [a-c]+"))
    assert constraint is not None
    own = tokenizer("bpe")
    mask = constraint.mask(own.n_vocab + 50)
    assert [bool(allowed) for allowed in mask] == [constraint.allows(id) for id in range(own.n_vocab)] + [False] * 50
    assert {own.token_bytes(id) for id in np.flatnonzero(mask)} >= {b"a", b"b", b"c"}


def test_the_best_allowed_token_wins_without_temperature() -> None:
    own, at = tokenizer("bpe"), bytes_of("bpe")
    params = SamplingParams(grammar="root ::= [ab]", temperature=0)
    sampler = Sampler(params, constraint=grammars("bpe").compile(params))
    logits = np.zeros(own.n_vocab, dtype=np.float32)
    logits[at[b"z"]], logits[at[b"b"]] = 9, 1
    assert sampler.sample(logits, [5]) == at[b"b"]
    assert sampler.constraint is not None and sampler.constraint.complete


def test_a_grammar_that_begins_later() -> None:
    params = SamplingParams(grammar='root ::= "ok"', grammar_after="</think>")
    constraint = grammars("bpe").compile(params)
    assert constraint is not None
    for id in byte_ids("any <x> thing</thin</think>", "bpe"):
        assert constraint.allows(id) and not constraint.complete
        assert constraint.mask(10).all() or id  # everything, as long as it thinks
        constraint.accept(id)
    assert not constraint.allows(byte_ids("x", "bpe")[0])
    assert follow(constraint, byte_ids("ok", "bpe"), "bpe")


def test_a_grammar_may_begin_behind_a_control_token() -> None:
    own = tokenizer("bpe")
    end = own.encode("<|im_end|>", add_special=False, parse_special=True)
    assert len(end) == 1 and own.token_bytes(end[0]) == b""
    constraint = grammars("bpe").compile(SamplingParams(grammar='root ::= "ok"', grammar_after="<|im_end|>"))
    assert constraint is not None
    for id in (*byte_ids("hm", "bpe"), *end):
        assert constraint.allows(id)
        constraint.accept(id)
    assert not constraint.allows(byte_ids("x", "bpe")[0])
    assert follow(constraint, byte_ids("ok", "bpe"), "bpe")


BEGIN = SamplingParams(grammar='root ::= "ok" | "<p>"', grammar_after="</think>", grammar_unless="<think>")


@pytest.mark.parametrize("text", ["ok", "<p>"])
def test_a_grammar_begins_at_once_where_the_answer_does_not_think(text: str) -> None:
    constraint = grammars("bpe").compile(BEGIN)
    assert constraint is not None and not constraint.complete
    x, less, o = byte_ids("x<o", "bpe")
    mask = constraint.mask(tokenizer("bpe").n_vocab)
    assert not constraint.allows(x) and mask[less] and mask[o] and not mask[x]
    assert follow(constraint, byte_ids(text, "bpe"), "bpe")


def test_a_grammar_waits_where_the_answer_begins_with_thinking() -> None:
    constraint = grammars("bpe").compile(BEGIN)
    assert constraint is not None
    for id in byte_ids("<", "bpe"):
        constraint.accept(id)
    allowed = {id for id, may in enumerate(constraint.mask(tokenizer("bpe").n_vocab)) if may}
    assert {bytes(tokenizer("bpe").token_bytes(id)) for id in allowed} == {b"t", b"th", b"p"}
    for id in byte_ids("think>so ok</think>", "bpe"):
        assert constraint.allows(id) and not constraint.complete
        constraint.accept(id)
    assert not constraint.allows(byte_ids("x", "bpe")[0])
    assert follow(constraint, byte_ids("ok", "bpe"), "bpe")


def test_thinking_may_begin_with_a_control_token() -> None:
    own = tokenizer("bpe")
    (begin,) = own.encode("<|im_start|>", add_special=False, parse_special=True)
    params = SamplingParams(grammar='root ::= "ok"', grammar_after="<|im_end|>", grammar_unless="<|im_start|>")
    constraint = grammars("bpe").compile(params)
    assert constraint is not None and constraint.allows(begin)
    constraint.accept(begin)
    for id in (*byte_ids("hm", "bpe"), *own.encode("<|im_end|>", add_special=False, parse_special=True)):
        assert constraint.allows(id)
        constraint.accept(id)
    assert not constraint.allows(byte_ids("x", "bpe")[0])
    assert follow(constraint, byte_ids("ok", "bpe"), "bpe")


def test_no_constraint_where_none_is_asked_for() -> None:
    assert grammars("bpe").compile(SamplingParams()) is None


def test_a_grammar_without_recursion_is_one_lexeme() -> None:
    assert gbnf_to_lark('root ::= a "x"\na ::= [b]').splitlines() == [
        "start: R0",
        r"R0: (R1 /\x{78}/)",
        r"R1: /[\x{62}-\x{62}]/",
    ]
