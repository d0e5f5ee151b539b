"""Go templates: each construct of the subset, what is refused, and conversations as Ollama lays them out."""

import json
from typing import Any

import pytest

from gmoe.tokenizer.gofunctions import TemplateError
from gmoe.tokenizer.gotemplate import GoTemplate

MESSAGES = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
GIVEN: dict[str, Any] = {
    "System": "S",
    "Empty": "",
    "N": 3,
    "Float": 0.5,
    "List": [1, 2, 3, 4],
    "Map": {"x": 1, "y": "<z>"},
    "Messages": MESSAGES,
    "Tools": [{"function": {"name": "f", "tool_calls": 7}}],
    "Yes": True,
}
CASES = [
    ("plain } { text", "plain } { text"),
    ("{{ .System }}", "S"),
    ("{{.System}}", "S"),
    ("{{ .Nothing }}{{ .Nothing.Deeper }}", ""),
    ("{{ .N }} {{ .Float }} {{ .Yes }}", "3 0.5 true"),
    ("{{ .Map }}", '{"x":1,"y":"\\u003cz\\u003e"}'),
    ("a  {{- .System -}}  b", "aSb"),
    ("a {{- /* note }} */ -}} b", "ab"),
    ("a {{/* note */}} b", "a  b"),
    ("a\n{{- if .System }}\n x\n{{- end }}\nb", "a\n x\nb"),
    ("{{ if .Empty }}1{{ else if .System }}2{{ else }}3{{ end }}", "2"),
    ("{{ if .Empty }}1{{ else if .Nothing }}2{{ else }}3{{ end }}", "3"),
    ("{{ if and .System (eq .N 3) }}y{{ end }}", "y"),
    ("{{ if or .Empty (ne .N 3) }}y{{ else }}n{{ end }}", "n"),
    ("{{ or .Empty .System }}{{ and .Empty .System }}", "S"),
    ("{{ if not .Empty }}y{{ end }}", "y"),
    ("{{ if eq .N 1 2 3 }}y{{ end }}", "y"),
    ("{{ if gt (len .List) 3 }}y{{ end }}{{ if le .N 2 }}n{{ end }}", "y"),
    ("{{ range .List }}{{ . }},{{ end }}", "1,2,3,4,"),
    ("{{ range $i, $m := .Messages }}{{ $i }}{{ $m.Role }}{{ .Content }}{{ end }}", "0usera1assistantb"),
    ("{{ range $m := .Messages }}{{ $m.Content }}{{ $.System }}{{ end }}", "aSbS"),
    ("{{ range $k, $v := .Map }}{{ $k }}={{ $v }};{{ end }}", "x=1;y=<z>;"),
    ("{{ range .Nothing }}x{{ else }}none{{ end }}", "none"),
    (
        "{{range .List}}{{if eq . 2}}{{continue}}{{end}}{{if eq . 4}}{{break}}{{end}}{{.}}{{end}}",
        "13",
    ),
    ("{{ $last := 0 }}{{ range .List }}{{ $last = . }}{{ end }}{{ $last }}", "4"),
    ("{{ $x := 1 }}{{ if .Yes }}{{ $x := 2 }}{{ $x }}{{ end }}{{ $x }}", "21"),
    ("{{ with .Map }}{{ .x }}{{ end }}{{ with .Empty }}a{{ else }}b{{ end }}", "1b"),
    ("{{ with $m := .Map }}{{ $m.x }}{{ end }}", "1"),
    ("{{ len .Messages }} {{ len .System }} {{ len .Nothing }}", "2 1 0"),
    ("{{ (index .Messages 1).Content }}{{ index .Map `x` }}", "b1"),
    ("{{ len (slice .List 1) }}{{ slice .List 1 3 }}{{ slice .System 0 1 }}", "3[2,3]S"),
    ("{{ $n := 1 }}{{ if eq (len (slice $.Messages $n)) 1 }}last{{ end }}", "last"),
    ('{{ printf "%s-%d%% %q" .System .N "a" }}', 'S-3% "a"'),
    ("{{ json .Map }}{{ .List | json }}", '{"x":1,"y":"\\u003cz\\u003e"}[1,2,3,4]'),
    ('{{ .System | printf "%s%s" "a" }}', "aS"),
    ('{{ "\\n\\"q\\" }}" }}', '\n"q" }}'),
    ("{{ `raw \\n` }}", "raw \\n"),
    ("{{ range .Tools }}{{ .Function.Name }}{{ .Function.ToolCalls }}{{ end }}", "f7"),
    ("{{ true }}{{ false }}{{ -2 }}", "truefalse-2"),
]
REFUSED = [
    ('{{ template "x" }}', "template is not supported"),
    ('{{ define "x" }}{{ end }}', "define is not supported"),
    ("a\nb{{ html .X }}", "line 2 of the template: html is not supported"),
    ("{{ if .X }}", "has no {{ end }}"),
    ("{{ end }}", "belongs to no block"),
    ("{{ else }}", "belongs to no block"),
    ("{{ break }}", "break stands alone within range"),
    ("{{ .X", "is never closed"),
    ("{{ }}", "an empty"),
    ("{{ 'c' }}", "is not supported"),
    ("{{ (len .X }}", "a parenthesis is not closed"),
    ("{{ .X .Y }}", "is not supported here"),
    ("{{ .X := 1 }}", "cannot be given a value"),
    ("{{ $y }}", "undefined variable $y"),
    ("{{ $y = 1 }}", "undefined variable $y"),
    ("{{ eq }}", "does not take these 0 values"),
    ("{{ index .List 9 }}", "where there is none"),
    ("{{ slice .List 3 1 }}", "not inside its value"),
    ("{{ len .N }}", "takes len of 3"),
    ("{{ range .N }}{{ end }}", "cannot range over"),
    ('{{ printf "%x" 1 }}', "knows %s, %d, %v and %q only"),
    ("{{ if lt .N .System }}{{ end }}", "cannot compare"),
    ("{{ if 1 }}" * 60, "parentheses within one another"),
    ("{{ " + "(" * 60 + " }}", "parentheses within one another"),
]
LEGACY = "{{ if .System }}[{{ .System }}]{{ end }}{{ if .Prompt }}<{{ .Prompt }}>{{ end }}({{ .Response }})"
TURNS = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "q"},
    {"role": "user", "content": "more"},
    {"role": "assistant", "content": "r"},
    {"role": "user", "content": "again"},
]


@pytest.mark.parametrize(("template", "text"), CASES)
def test_constructs(template: str, text: str) -> None:
    assert GoTemplate.parse(template).render(GIVEN) == text


@pytest.mark.parametrize(("template", "sentence"), REFUSED)
def test_the_rest_is_refused(template: str, sentence: str) -> None:
    with pytest.raises(TemplateError) as error:
        GoTemplate.parse(template).render(GIVEN)
    assert sentence in str(error.value)


def test_a_template_cannot_write_without_end() -> None:
    loop = "{{ range .L }}{{ range $.L }}{{ range $.L }}" + "x" * 1000 + "{{ end }}{{ end }}{{ end }}"
    with pytest.raises(TemplateError, match="writes more than"):
        GoTemplate.parse(loop).render({"L": list(range(100))})


def test_a_template_that_does_not_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gmoe.tokenizer.gotemplate.SECONDS", 0.05)
    loops = "{{ range $.Messages }}" * 5 + "{{ if false }}x{{ end }}" + "{{ end }}" * 5
    with pytest.raises(TemplateError, match=r"ran longer than 0\.05 seconds"):
        GoTemplate.parse(loops).render({"Messages": [{}] * 100})


def test_a_legacy_template_is_rendered_a_turn_and_cut_at_the_answer() -> None:
    assert GoTemplate.parse(LEGACY).chat(TURNS) == "[S]<q\n\nmore>(r)<again>("
    assert GoTemplate.parse("{{ .Prompt }}|{{ if .Response }}{{ .Response }}!{{ end }}end").chat(TURNS[1:2]) == "q|"


def test_a_template_without_an_answer_gets_one() -> None:
    assert GoTemplate.parse("<{{ .Prompt }}>").chat(TURNS) == "<q\n\nmore>r<again>"


def test_a_template_of_messages_gets_all_of_them() -> None:
    template = GoTemplate.parse("{{ .System }}{{ range .Messages }}/{{ .Role }}:{{ .Content }}{{ end }}")
    assert template.chat(TURNS) == "S/system:S/user:q\n\nmore/assistant:r/user:again"
    answers = [{"role": "tool", "content": "1"}, {"role": "tool", "content": "2"}]
    assert template.chat(answers) == "/tool:1/tool:2"


def test_neighbours_that_are_joined_keep_their_calls() -> None:
    template = GoTemplate.parse(
        "{{ range .Messages }}{{ .Content }}{{ range .ToolCalls }}[{{ .Function.Name }}]{{ end }}{{ end }}"
    )
    calls: list[dict[str, Any]] = [{"function": {"name": name}} for name in "ab"]
    asked = [{"role": "assistant", "content": "", "tool_calls": [call]} for call in calls]
    assert template.chat([*asked, {"role": "assistant", "content": "so"}]) == "so[a][b]"


def test_tools_and_thinking() -> None:
    tools = [
        {"type": "function", "function": {"name": "add", "parameters": {"properties": {"a": {"type": "integer"}}}}}
    ]
    text = "{{ range .Tools }}{{ json . }}{{ range $n, $p := .Function.Parameters.Properties }}{{ $n }}: "
    text += "{{ toTypeScriptType $p }}{{ end }}{{ end }}{{ if .Think }}T{{ end }}{{ range .Messages }}{{ end }}"
    rendered = GoTemplate.parse(text).chat([], tools, Think=True)
    assert rendered == json.dumps(tools[0], separators=(",", ":")) + "a: numberT"


def test_fill_in_the_middle() -> None:
    template = GoTemplate.parse("<P>{{ .Prompt }}<S>{{ .Suffix }}<M>{{ .Response }}")
    assert template.render({"Prompt": "a", "Suffix": "b"}) == "<P>a<S>b<M>"
    assert template.fields == {"Prompt", "Suffix", "Response"}
