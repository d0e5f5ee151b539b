"""Parsers of answers: what each dialect means, wherever the text is cut."""

import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmoe.tokenizer.parsers.arguments import ToolCall
from gmoe.tokenizer.parsers.choose import (
    DIALECTS,
    dialect_of,
    end_of_thinking,
    known,
    marks_of,
    parser_for,
    require_parser,
)

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "metric": {"type": "boolean"},
                "near": {"type": "array"},
                "zip": {"type": ["string", "null"]},
                "any": {"anyOf": [{"type": "string"}, {"type": "number"}, {"type": "object"}]},
            },
        },
    },
}
STOPS = {"type": "object", "properties": {"at": {"type": "integer"}, "name": {"type": "string"}}}
EITHER = {"anyOf": [STOPS, {"type": "array", "items": {"type": "integer"}}]}
PLAN = {"properties": {"stops": {"type": "array", "items": STOPS}, "free": {"type": "array"}, "a": EITHER, "b": EITHER}}
TOOLS = [
    WEATHER,
    {"type": "function", "function": {"name": "time"}},
    {"type": "function", "function": {"name": "plan", "parameters": PLAN}},
]
ROME = ToolCall("weather", {"city": "Rome"})
TWO = ToolCall("weather", {"city": "Rome", "days": 2})
CALL = '{"name": "weather", "arguments": {"city": "Rome"}}'


def call(payload: ToolCall) -> tuple[str, ToolCall]:
    return ("tool_call", payload)


def content(text: str) -> tuple[str, str]:
    return ("content", text)


def thinking(text: str) -> tuple[str, str]:
    return ("thinking", text)


def dsml(name: str, parameters: str) -> str:
    return f'<｜DSML｜invoke name="{name}">\n{parameters}</｜DSML｜invoke>\n'


def k3(tag: str, inner: str, attributes: str = "") -> str:
    return f"<|open|>{tag}{attributes}<|sep|>{inner}<|close|>{tag}<|sep|>"


def m3(text: str) -> str:
    return text.replace("|", "]<]minimax[>[")


# dialect, answer, its pieces; with tools, and after a prompt that opens nothing
CASES: list[tuple[str, str, list[Any]]] = [
    ("plain", "<think>x</think><tool_call>", [content("<think>x</think><tool_call>")]),
    ("think", "Hello", [content("Hello")]),
    ("think", "<think>\nhm, <b>\n</think>\n\nHello \n", [thinking("hm, <b>"), content("Hello \n")]),
    ("think", " \n<think></think>Hi", [content("Hi")]),
    ("think", "<think>never ends \n", [thinking("never ends")]),
    ("think", "<think>broken </thin", [thinking("broken </thin")]),
    ("think", "I say <think>no</think>", [content("I say <think>no</think>")]),
    ("think", "  two", [content("  two")]),
    ("think", "<thi", [content("<thi")]),
    ("think", "", []),
    ("hermes", f"<tool_call>\n{CALL}\n</tool_call>", [call(ROME)]),
    ("hermes", f"<think>a</think>b\n<tool_call>{CALL}</tool_call>", [thinking("a"), content("b"), call(ROME)]),
    ("hermes", f"<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>\n", [call(ROME), call(ROME)]),
    ("hermes", f"<tool_call>{CALL}\n{CALL}</tool_call> and", [call(ROME), call(ROME), content("and")]),
    ("hermes", f"<tool_call>{CALL}", [call(ROME)]),
    ("hermes", f"<tool_call>{CALL[:-5]}", [content(f"<tool_call>{CALL[:-5]}")]),
    ("hermes", "a \n<tool_call>no</tool_call> b", [content("a \n<tool_call>no</tool_call> b")]),
    ("hermes", f"<think>a <tool_call>{CALL}</tool_call>b", [thinking("a"), call(ROME), content("b")]),
    (
        "hermes",
        "<think>a <tool_call>x</tool_call> b</think>c",
        [thinking("a <tool_call>x</tool_call> b"), content("c")],
    ),
    (
        "hermes",
        '<tool_call>{"name": "time", "arguments": {"s": "</tool_call>"}}</tool_call>',
        [call(ToolCall("time", {"s": "</tool_call>"}))],
    ),
    ("hermes", '<tool_call>{"name": "time"}</tool_call>', [call(ToolCall("time", {}))]),
    (
        "hermes",
        '<tool_call>{"name": "time", "arguments": "{\\"a\\": 1}"}</tool_call>',
        [call(ToolCall("time", {"a": 1}))],
    ),
    ("hermes", "a < b <tool", [content("a < b <tool")]),
    (
        "qwen3_coder",
        "Look:\n<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n<parameter=days>\n2\n"
        "</parameter>\n</function>\n</tool_call>",
        [content("Look:"), call(TWO)],
    ),
    ("qwen3_coder", "<function=weather>\n<parameter=city>\nRome\n</parameter>\n</function>", [call(ROME)]),
    (
        "qwen3_coder",
        "<tool_call>\n<function=weather>\n<parameter=city>\na\n<b>\n\n</parameter>\n<parameter=metric>\nTrue\n</parameter>"
        "\n<parameter=near>\n[1, 2]\n</parameter>\n<parameter=zip>\nnull\n</parameter>\n<parameter=other>\n7\n"
        "</parameter>\n</function>\n</tool_call>",
        [
            call(
                ToolCall("weather", {"city": "a\n<b>\n", "metric": True, "near": [1, 2], "zip": None, "other": "7"}),
            )
        ],
    ),
    (
        "qwen3_coder",
        "<tool_call>\n<function=weather>\n<parameter=city>\na </parameter> b </tool_call> <parameter=c>\n"
        "</function> d\n</parameter>\n<parameter=zip>\n\n</parameter>\n</function>\n</tool_call>",
        [call(ToolCall("weather", {"city": "a </parameter> b </tool_call> <parameter=c>\n</function> d", "zip": ""}))],
    ),
    (
        "qwen3_coder",
        "<tool_call>\n<function=weather>\n<parameter=city>\nRome\n<parameter=days>\n2\n</function>\n"
        "<function=weather><parameter=city>Rome<parameter=days>2</parameter></function></tool_call>",
        [call(TWO), call(TWO)],
    ),
    (
        "qwen3_coder",
        "<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n<parameter=days>2</parameter></tool_call>",
        [call(TWO)],
    ),
    (
        "qwen3_coder",
        "<tool_call>\n<function=weather>\n<parameter=city>\nRo",
        [content("<tool_call>\n<function=weather>\n<parameter=city>\nRo")],
    ),
    (
        "qwen3_coder",
        "<think>\nhm\n<tool_call>\n<function=time>\n</function>\n</tool_call>\n<tool_call>\n<function=weather>\n"
        "<parameter=city>\n    Rome\n\n</parameter>\n</function>\n</tool_call>",
        [thinking("hm"), call(ToolCall("time", {})), call(ToolCall("weather", {"city": "    Rome\n"}))],
    ),
    ("qwen3_coder", "<tool_call>weather</tool_call>", [content("<tool_call>weather</tool_call>")]),
    ("qwen3_coder", "<tool_call>\n<function=time>\n</function>\n</tool_call>", [call(ToolCall("time", {}))]),
    (
        "glm4",
        "\n<think>so</think>\nok\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Rome</arg_value>\n"
        "<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>",
        [thinking("so"), content("ok"), call(TWO)],
    ),
    ("glm4", "<tool_call>time</tool_call><tool_call>time\n</tool_call>", [call(ToolCall("time", {}))] * 2),
    ("glm4", "<tool_call>a <b></tool_call>", [content("<tool_call>a <b></tool_call>")]),
    (
        "minimax",
        '<minimax:tool_call>\n<invoke name="weather">\n<parameter name="city">Rome</parameter>\n</invoke>\n'
        '<invoke name="time">\n</invoke>\n</minimax:tool_call>',
        [call(ROME), call(ToolCall("time", {}))],
    ),
    (
        "deepseek",
        "Ok.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n"
        '{"city": "Rome"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>time\n```json\n{}\n```'
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        [content("Ok."), call(ROME), call(ToolCall("time", {}))],
    ),
    (
        "deepseek",
        "<think>hm</think><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>"
        '{"city": "Rome"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        [thinking("hm"), call(ROME)],
    ),
    (
        "kimi",
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>"
        '{"city": "Rome"}<|tool_call_end|><|tool_call_begin|>time<|tool_call_argument_begin|>{}<|tool_call_end|>'
        "<|tool_calls_section_end|>",
        [call(ROME._replace(id="functions.weather:0")), call(ToolCall("time", {}))],
    ),
    ("mistral", f"[TOOL_CALLS][{CALL}, {CALL}]", [call(ROME), call(ROME)]),
    (
        "mistral",
        f"[TOOL_CALLS][{CALL[:-1]}, " + '"id": "D681PevKs"}, {"name": "time", "id": "call_1"}]',
        [call(ROME._replace(id="D681PevKs")), call(ToolCall("time", {}))],
    ),
    (
        "mistral",
        '[TOOL_CALLS]weather[CALL_ID]D681PevKs[ARGS]{"city": "Rome"}',
        [call(ROME._replace(id="D681PevKs"))],
    ),
    (
        "mistral",
        '[THINK]so[/THINK]Ok [TOOL_CALLS]weather[ARGS]{"city": "Rome"}[TOOL_CALLS]time[CALL_ID]ab[ARGS]{}',
        [thinking("so"), content("Ok"), call(ROME), call(ToolCall("time", {}))],
    ),
    ("mistral", '[TOOL_CALLS]weather{"city": "Rome"}', [call(ROME)]),
    ("mistral", "see [1] and [TOOL", [content("see [1] and [TOOL")]),
    ("granite", f"<|tool_call|>[{CALL}]", [call(ROME)]),
    ("granite", f"<tool_call>[{CALL}]", [call(ROME)]),
    ("granite", f"<|tool_call|>[{CALL}]<|/tool_call|>", [call(ROME)]),
    ("granite", "<think>so</think>\n<response>Hi <b>\n</response>", [thinking("so"), content("Hi <b>")]),
    ("granite", f" <response>\nHi</response><|tool_call|>[{CALL}]", [content("Hi"), call(ROME)]),
    ("granite", "Hi <response></response>", [content("Hi <response></response>")]),
    ("granite", "<resp", [content("<resp")]),
    ("granite", "<|tool_call|>nothing", [content("<|tool_call|>nothing")]),
    ("llama3", '{"name": "weather", "parameters": {"city": "Rome"}}', [call(ROME)]),
    ("llama3", '<|python_tag|>{"name": "weather", "parameters": {"city": "Rome"}}; ' + CALL, [call(ROME), call(ROME)]),
    ("llama3", f"<|python_start|>{CALL}<|python_end|>", [call(ROME)]),
    ("llama3", f"<|python_start|><|python_end|>{CALL}", [call(ROME)]),
    ("llama3", '{"name": "nobody", "parameters": {}}', [content('{"name": "nobody", "parameters": {}}')]),
    ("llama3", "{ is a brace", [content("{ is a brace")]),
    ("llama3", "Hello {", [content("Hello {")]),
    (
        "lfm2",
        "<think>\nhm</think>\nI look. <|tool_call_start|>[weather(city='Rome', days=2)]<|tool_call_end|>Done.",
        [thinking("hm"), content("I look."), call(TWO), content("Done.")],
    ),
    (
        "lfm2",
        '<|tool_call_start|>[weather(city="Rome"), time()]<|tool_call_end|>\n'
        "<|tool_call_start|>time()<|tool_call_end|>",
        [call(ROME), call(ToolCall("time", {})), call(ToolCall("time", {}))],
    ),
    (
        "lfm2",
        "<|tool_call_start|>[weather(metric=True, zip=None, near=[1, -2.5, {'a': false}, null])]<|tool_call_end|>",
        [call(ToolCall("weather", {"metric": True, "zip": None, "near": [1, -2.5, {"a": False}, None]}))],
    ),
    ("lfm2", f"<|tool_call_start|>[{CALL}]<|tool_call_end|><|tool_call_start|>{CALL}", [call(ROME), call(ROME)]),
    (
        "lfm2",
        '<|tool_call_start|>[Calendar.add-event(from="a\\n\\"b\\"\\u00e9\\ud83d\\ude00\\d", '
        "class = 'c\nd')]<|tool_call_end|>",
        [call(ToolCall("Calendar.add-event", {"from": 'a\n"b"é😀\\d', "class": "c\nd"}))],
    ),
    (
        "lfm2",
        "<|tool_call_start|>[weather(city='It's Rome, o'clock', zip='')]<|tool_call_end|>",
        [call(ToolCall("weather", {"city": "It's Rome, o'clock", "zip": ""}))],
    ),
    (
        "lfm2",
        "<think>a <|tool_call_start|>[time()]<|tool_call_end|></think>b",
        [thinking("a <|tool_call_start|>[time()]<|tool_call_end|>"), content("b")],
    ),
    (
        "lfm2",
        "a <|tool_call_start|>[weather('Rome')]<|tool_call_end|> <|tool_call_start|>[time()]<|tool_call_end|>",
        [content("a <|tool_call_start|>[weather('Rome')]<|tool_call_end|>"), call(ToolCall("time", {}))],
    ),
    ("lfm2", "see [link](url) <|tool_call", [content("see [link](url) <|tool_call")]),
    ("gemma4", "<|channel>thought\nhm,\n<b>\n<channel|>Hello \n", [thinking("hm,\n<b>"), content("Hello \n")]),
    ("gemma4", "<|channel>thought<channel|>Hi<|channel>thought\n<channel|><channel|>", [content("Hi")]),
    ("gemma4", "<|channel><|channel>thought\n<channel|>Hi, thought <b", [content("Hi, thought <b")]),
    ("gemma4", "  a<channel|> b <|chan", [content("  a b <|chan")]),
    ("gemma4", "<|channel>thou", [content("thou")]),
    (
        "gemma4",
        'a\n<|channel>thought\nb <|tool_call>call:time{}<tool_call|><channel|><|tool_call>call:weather{city:<|"|>Rome'
        '<|"|>,days:2}<tool_call|>',
        [content("a"), thinking("b <|tool_call>call:time{}<tool_call|>"), call(TWO)],
    ),
    (
        "gemma4",
        'Ok. <|tool_call>call:weather{city:<|"|>Rome<|"|>}<tool_call|><|tool_call>call:time{}<tool_call|>\n',
        [content("Ok."), call(ROME), call(ToolCall("time", {}))],
    ),
    (
        "gemma4",
        '<|tool_call>call:my-time.x{city:<|"|>{"a": [1,\n"b}"]}<|"|>, near:[-1.5e3,{<|"|>a: b<|"|>:[],c d:{}}], '
        'zip:None,metric:true,"x":"y:z, \\"q"}<tool_call|>',
        [
            call(
                ToolCall(
                    "my-time.x",
                    {
                        "city": '{"a": [1,\n"b}"]}',
                        "near": [-1500.0, {"a: b": [], "c d": {}}],
                        "zip": None,
                        "metric": True,
                        "x": 'y:z, "q',
                    },
                )
            )
        ],
    ),
    (
        "gemma4",
        '<|tool_call>call:time{s:<|"|><tool_call|><|"|>}<tool_call|>',
        [call(ToolCall("time", {"s": "<tool_call|>"}))],
    ),
    (
        "gemma4",
        "a <|tool_call>call:weather{city:Rome}<tool_call|> <|tool_call>call:time{<tool_call|><|tool_call>call:time{}",
        [
            content("a <|tool_call>call:weather{city:Rome}<tool_call|> <|tool_call>call:time{<tool_call|>"),
            call(ToolCall("time", {})),
        ],
    ),
    ("gemma4", '<|tool_call>call:time{s:<|"|>', [content('<|tool_call>call:time{s:<|"|>')]),
    (
        "functiongemma",
        "<start_function_call>call:weather{city:<escape>Rome<escape>,days:2}<end_function_call>"
        "<start_function_call>call:time{}<end_function_call>Hi",
        [call(TWO), call(ToolCall("time", {})), content("Hi")],
    ),
    (
        "functiongemma",
        "<start_function_call>time<end_function_call>",
        [content("<start_function_call>time<end_function_call>")],
    ),
    ("harmony", "<|channel|>final<|message|>Hi<|return|>", [content("Hi")]),
    (
        "harmony",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Hi <b>",
        [thinking("Hm."), content("Hi <b>")],
    ),
    (
        "harmony",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.weather "
        '<|constrain|>json<|message|>{"city": "Rome"}<|call|>',
        [thinking("Hm."), call(ROME)],
    ),
    (
        "harmony",
        '<|start|>assistant to=functions.weather<|channel|>commentary json<|message|>{"city": "Rome"}',
        [call(ROME)],
    ),
    (
        "harmony",
        "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>commentary to=functions.time"
        "<|message|>{}<|call|>",
        [content("I look."), call(ToolCall("time", {}))],
    ),
    ("harmony", "no header at all", [content("no header at all")]),
    ("harmony", "<|channel|>commentary to=functions.time<|message|>{bad<|call|>", [content("{bad")]),
    ("harmony", "<|channel|>final", []),
    ("solar", "<|content|>Hi<|end|><|flush|>", [content("Hi")]),
    (
        "solar",
        "<|think|>Hm.<|end|><|begin|>assistant<|content|>Hi <b>",
        [thinking("Hm."), content("Hi <b>")],
    ),
    (
        "solar",
        "<|think|>Hm.<|end|><|begin|>assistant<|tool_calls|><|tool_call:begin|>a1b2c3d4e5<|tool_call:name|>weather"
        '<|tool_call:args|>{"city": "Rome"}<|tool_call:end|><|tool_call:begin|>f<|tool_call:name|>time'
        "<|tool_call:args|><|tool_call:end|><|calls|>",
        [thinking("Hm."), call(ROME._replace(id="a1b2c3d4e5")), call(ToolCall("time", {}, "f"))],
    ),
    ("solar", "<|tool_calls|>weather<|calls|>", [content("weather")]),
    (
        "solar",
        "<|tool_calls|><|tool_call:begin|>a<|tool_call:end|>",
        [content("<|tool_call:begin|>a<|tool_call:end|>")],
    ),
    ("solar", "no header at all", [content("no header at all")]),
    ("solar", "<|begin|>assistant", []),
    (
        "dsml",
        "I look.\n\n<｜DSML｜function_calls>\n"
        + dsml(
            "weather",
            '<｜DSML｜parameter name="city" string="true">Rome</｜DSML｜parameter>\n'
            '<｜DSML｜parameter name="days" string="false">2</｜DSML｜parameter>\n',
        )
        + dsml("time", "")
        + "</｜DSML｜function_calls>",
        [content("I look."), call(TWO), call(ToolCall("time", {}))],
    ),
    (
        "dsml",
        "<think>Hm</think><｜DSML｜tool_calls>"
        + dsml("weather", '<｜DSML｜parameter name="near" string="false">["a", {"b": null}]</｜DSML｜parameter>')
        + "</｜DSML｜tool_calls>",
        [thinking("Hm"), call(ToolCall("weather", {"near": ["a", {"b": None}]}))],
    ),
    ("dsml", "<｜DSML｜tool_calls>x</｜DSML｜tool_calls>", [content("<｜DSML｜tool_calls>x</｜DSML｜tool_calls>")]),
    (
        "cohere",
        "<|START_THINKING|>Hm<|END_THINKING|><|START_TEXT|>Hi <b><|END_TEXT|>",
        [thinking("Hm"), content("Hi <b>")],
    ),
    (
        "cohere",
        '<|START_THINKING|>Hm<|END_THINKING|><|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "weather", '
        '"parameters": {"city": "Rome"}},\n    {"tool_call_id": "1", "tool_name": "time", "parameters": {}}\n]'
        "<|END_ACTION|>",
        [thinking("Hm"), call(ROME), call(ToolCall("time", {}))],
    ),
    ("cohere", "<|START_ACTION|>[]<|END_ACTION|>", [content("<|START_ACTION|>[]<|END_ACTION|>")]),
    ("hunyuan", "<think:opensource>Hm</think:opensource>Hi", [thinking("Hm"), content("Hi")]),
    (
        "hunyuan",
        "Well.<tool_calls:opensource>\n<tool_call:opensource>weather<tool_sep:opensource>\n"
        "<arg_key:opensource>city</arg_key:opensource>\n<arg_value:opensource>Rome</arg_value:opensource>\n"
        "<arg_key:opensource>days</arg_key:opensource>\n<arg_value:opensource>2</arg_value:opensource>\n"
        "</tool_call:opensource>\n<tool_call:opensource>time<tool_sep:opensource>\n</tool_call:opensource>\n"
        "</tool_calls:opensource>",
        [content("Well."), call(TWO), call(ToolCall("time", {}))],
    ),
    (
        "hunyuan",
        "<tool_calls:opensource>weather</tool_calls:opensource>",
        [content("<tool_calls:opensource>weather</tool_calls:opensource>")],
    ),
    *(
        (
            "glm4",
            f"<tool_call>weather\n<arg_key>any</arg_key>\n<arg_value>{text}</arg_value>\n</tool_call>",
            [call(ToolCall("weather", {"any": value}))],
        )
        for text, value in [('{"a": 1}', {"a": 1}), ("7", 7), ("7 km", "7 km"), ("true", "true"), ('["a"]', '["a"]')]
    ),
    (
        "qwen3_coder",
        "I look.\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n</function>\n</tool_call>",
        [content("I look."), call(ROME)],
    ),
    (
        "kimi",
        '<think>Hm<|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>{"city": "Rome"}<|tool_call_begin|>'
        "functions.time:1<|tool_call_argument_begin|>{}<|tool_call_end|>",
        [
            thinking("Hm"),
            call(ROME._replace(id="functions.weather:0")),
            call(ToolCall("time", {}, "functions.time:1")),
        ],
    ),
    (
        "mistral",
        "[THINK]Say [TOOL_CALLS]time[ARGS]{} or so[/THINK][TOOL_CALLS]time[ARGS]{}",
        [thinking("Say [TOOL_CALLS]time[ARGS]{} or so"), call(ToolCall("time", {}))],
    ),
    (
        "harmony",
        "<|channel|>commentary to=assistant<|channel|>analysis<|message|>Hm<|end|><|channel|>final<|message|>Hi",
        [thinking("Hm"), content("Hi")],
    ),
    ("gigachat", f"I look.\n\nfunction call<|role_sep|>\n{CALL}", [content("I look."), call(ROME)]),
    ("gigachat", f"<|function_call|>{CALL}\n", [call(ROME)]),
    ("gigachat", "a function call", [content("a function call")]),
    (
        "kimi_k3",
        f"{k3('think', 'Hm')}{k3('response', 'Hi <b>')}<|close|>message<|sep|>",
        [thinking("Hm"), content("Hi <b>")],
    ),
    (
        "kimi_k3",
        k3("think", "Hm")
        + k3("response", "")
        + k3(
            "tools",
            k3(
                "call",
                k3("argument", "Rome", ' key="city" type="string"') + k3("argument", "2", ' key="days" type="number"'),
                ' tool="weather" index="1"',
            )
            + k3("call", k3("json", '{"a&quot;": 1}', ' type="object"'), ' tool="a&quot;&amp;b" index="2"'),
        )
        + "<|close|>message<|sep|>",
        [thinking("Hm"), call(TWO), call(ToolCall('a"&b', {"a&quot;": 1}))],
    ),
    ("kimi_k3", k3("tools", "x"), [content(k3("tools", "x"))]),
    ("minimax_m3", "<mm:think>Hm</mm:think>Hi", [thinking("Hm"), content("Hi")]),
    ("minimax_m3", "</mm:think>Hi", [content("Hi")]),
    (
        "minimax_m3",
        m3(
            '|<tool_call>\n|<invoke name="weather">|<city>Rome|</city>|<days>2|</days>|</invoke>\n'
            '|<invoke name="plan">|<stops>|<item>|<at>7|</at>|<name>7|</name>|</item>|<item>|</item>|</stops>'
            "|<free>|</free>"
            "|<a>|<item>1|</item>|</a>|<b>|<at>1|</at>|</b>|<other>|<x>1|</x>|</other>|</invoke>\n|</tool_call>"
        ),
        [
            call(TWO),
            call(
                ToolCall(
                    "plan",
                    {"stops": [{"at": 7, "name": "7"}, {}], "free": [], "a": [1], "b": {"at": 1}, "other": {"x": "1"}},
                )
            ),
        ],
    ),
    *(
        ("minimax_m3", m3(f"|<tool_call>{body}|</tool_call>"), [content(m3(f"|<tool_call>{body}|</tool_call>"))])
        for body in (
            "",
            "x",
            '|<invoke name="time">',
            '|<invoke name="time">|</call>',
            "|<invoke>|</invoke>",
            "|time",
            '|<invoke name="time">a|<b>c|</b>|</invoke>',
            '|<invoke name="time">|</invoke>|</invoke>',
            '|<invoke name="time">' + "|<a>" * 70,
        )
    ),
]
PROMPTS = [
    ("cohere", "<|CHATBOT_TOKEN|><|START_THINKING|>", "x<|END_THINKING|>", [thinking("x")]),
    ("hunyuan", "<think:opensource>", "x</think:opensource>y", [thinking("x"), content("y")]),
    ("kimi_k3", "<|open|>think<|sep|>", f"x<|close|>think<|sep|>{k3('response', 'y')}", [thinking("x"), content("y")]),
    ("kimi_k3", "<|open|>think<|sep|>", k3("response", "y"), [content("y")]),
    ("kimi_k3", "<|open|>response<|sep|>", "y<|close|>response<|sep|><|close|>message<|sep|>", [content("y")]),
    ("minimax_m3", "<mm:think>", "x</mm:think>y", [thinking("x"), content("y")]),
    ("minimax_m3", "</mm:think>", "y", [content("y")]),
    ("think", "<|Assistant|><think>\n", "Hm\n</think>\n\nHi", [thinking("Hm"), content("Hi")]),
    ("hermes", "assistant\n<think>\n\n</think>\n\n", "Hi", [content("Hi")]),
    (
        "qwen3_coder",
        "assistant\n<think>\n",
        "</think>\n\n<tool_call>\n<function=time>\n</function>\n</tool_call>",
        [call(ToolCall("time", {}))],
    ),
    ("qwen3_coder", "assistant\n<think>\n\n</think>\n\n", "Hi", [content("Hi")]),
    ("mistral", "[/INST][THINK]", "x[/THINK]y", [thinking("x"), content("y")]),
    ("gemma4", "<|turn>model\n<|channel>thought\n<channel|>", "Hi", [content("Hi")]),
    ("gemma4", "<|turn>model\n<|channel>thought\n", "x<channel|>y", [thinking("x"), content("y")]),
    ("harmony", "<|start|>assistant", "<|channel|>final<|message|>Hi", [content("Hi")]),
    ("harmony", "<|start|>assistant<|channel|>final<|message|>", "Hi", [content("Hi")]),
    ("harmony", "<|start|>assistant<|channel|>analysis<|message|>", "Hm", [thinking("Hm")]),
    ("solar", "<|begin|>assistant<|think|><|end|><|begin|>assistant", "<|content|>Hi", [content("Hi")]),
    ("solar", "<|begin|>assistant<|think|>", "Hm<|end|><|begin|>assistant<|content|>", [thinking("Hm")]),
]


def parse(dialect: str, parts: list[str], tools: Any = TOOLS, prompt: str = "") -> list[Any]:
    parser, pieces = parser_for(dialect, tools, prompt), []
    for part in parts:
        pieces += parser.push(part)
    return merged(pieces + parser.close())


def merged(pieces: list[Any]) -> list[Any]:
    joined: list[Any] = []
    for kind, payload in pieces:
        if joined and kind != "tool_call" and joined[-1][0] == kind:
            joined[-1] = (kind, joined[-1][1] + payload)
        else:
            joined.append((kind, payload))
    return joined


@pytest.mark.parametrize(("dialect", "text", "pieces"), CASES)
def test_a_dialect_means_the_same_wherever_it_is_cut(dialect: str, text: str, pieces: list[Any]) -> None:
    assert parse(dialect, [text]) == pieces
    assert parse(dialect, list(text)) == pieces
    for at in range(1, len(text)):
        assert parse(dialect, [text[:at], text[at:]]) == pieces, (text[:at], text[at:])
    rng = np.random.default_rng(len(text))
    for _ in range(20):
        cuts = sorted({0, len(text), *rng.integers(0, len(text) + 1, 4).tolist()})
        assert parse(dialect, [text[a:b] for a, b in pairwise(cuts)]) == pieces


@pytest.mark.parametrize(("dialect", "prompt", "text", "pieces"), PROMPTS)
def test_what_the_prompt_has_opened(dialect: str, prompt: str, text: str, pieces: list[Any]) -> None:
    assert parse(dialect, [text], prompt=prompt) == parse(dialect, list(text), prompt=prompt) == pieces


def test_without_tools_no_call_is_looked_for() -> None:
    text = f"<tool_call>{CALL}</tool_call>"
    assert parse("hermes", list(text), tools=None) == [content(text)]
    assert parse("llama3", [CALL], tools=[]) == [content(CALL)]


@pytest.mark.parametrize(("dialect", "text", "pieces"), CASES)
def test_what_is_given_is_never_taken_back(dialect: str, text: str, pieces: list[Any]) -> None:
    """So no half tag is given: a tag is in no final piece, whose beginning everything given before must be."""
    parser, given = parser_for(dialect, TOOLS), []
    for letter in text:
        given = merged(given + parser.push(letter))
        assert given[:-1] == pieces[: len(given) - 1] if given else True
        if given:
            kind, payload = given[-1]
            final_kind, final = pieces[len(given) - 1]
            assert kind == final_kind and (payload == final or final.startswith(payload))


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999", "9" * 5000])
def test_a_call_with_a_number_that_json_lacks_stays_text(number: str) -> None:
    text = '<tool_call>{"name": "add", "arguments": {"a": ' + number + "}}</tool_call>"
    assert parse("hermes", [text]) == [content(text)]


def test_every_dialect_has_cases_and_marks() -> None:
    assert {dialect for dialect, *_ in CASES} == set(DIALECTS)
    assert all(all(isinstance(mark, str) for mark in marks_of(dialect)) for dialect in DIALECTS)


@pytest.mark.parametrize(
    ("dialect", "begin", "end"),
    [
        ("hermes", "<think>", "</think>"),
        ("lfm2", "<think>", "</think>"),
        ("gemma4", "<|channel>thought\n", "<channel|>"),
        ("harmony", "<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
        ("solar", "<|think|>", "<|content|>"),
        ("mistral", "[THINK]", "[/THINK]"),
        ("cohere", "<|START_THINKING|>", "<|END_THINKING|>"),
        ("hunyuan", "<think:opensource>", "</think:opensource>"),
        ("kimi_k3", "<|open|>think<|sep|>", "<|close|>think<|sep|>"),
        ("minimax_m3", "<mm:think>", "</mm:think>"),
    ],
)
def test_behind_the_end_of_thinking_comes_the_answer(dialect: str, begin: str, end: str) -> None:
    assert end_of_thinking(dialect) == end
    assert parse(dialect, [f"{begin}hm{end}Hi"]) == [thinking("hm"), content("Hi")]


def test_not_every_dialect_thinks() -> None:
    assert end_of_thinking("plain") is end_of_thinking("llama3") is end_of_thinking("functiongemma") is None


def test_thinking_and_content_stream_at_once() -> None:
    parser = parser_for("hermes", TOOLS)
    assert parser.push("<think>one") == [thinking("one")]
    assert parser.push(" two ") == [thinking(" two")]
    assert parser.push("</think>") == []
    assert parser.push("\nHello") == [content("Hello")]
    assert parser.push(" world") == [content(" world")]


@pytest.mark.parametrize(
    "body",
    [
        "",
        "[]",
        "weather",
        "[weather(city=Rome)]",
        "[weather(days=1+1)]",
        "[weather(city=f'Rome')]",
        "[weather(city=b'Rome')]",
        "[weather(city=time())]",
        "[weather(**{'city': 'Rome'})]",
        "[weather(near={1: 2})]",
        "[weather(near={'a', 'b'})]",
        "[weather(city='Rome]",
        "[weather(city='Rome')",
        "[weather(days=0x1for x)]",
        "[weather(days=01)]",
        "[weather(city='\0'\0)]",
        "[weather(days=" + "9" * 5000 + ")]",
        "[weather(days=" + "-" * 50_000 + "1)]",
        "[weather(near=" + "[" * 5000 + "]" * 5000 + ")]",
        "time" + "()" * 50_000,
        "℘1(city='Rome')",
        "__import__('os').system('true')",
    ],
)
def test_what_is_no_call_of_lfm2_stays_text(body: str) -> None:
    text = f"<|tool_call_start|>{body}<|tool_call_end|>"
    assert parse("lfm2", [text]) == [content(text)]


@given(
    st.sampled_from(DIALECTS),
    st.lists(
        st.sampled_from(
            [
                "<",
                "think>",
                "</think>",
                "<tool_call>",
                "{",
                "}",
                " ",
                "a",
                "</tool_call>",
                CALL,
                "<function=",
                "<|channel|>",
                "<|channel>",
                "<channel|>",
                "thought",
                "<|tool_call>",
                "call:",
                '<|"|>',
                ":",
                "<tool_call|>",
                "<|message|>",
                "<|end|>",
                "to=",
                "[TOOL_CALLS]",
                "<|open|>",
                "<|close|>",
                "think",
                "response",
                "message",
                "<|sep|>",
                "]<]minimax[>[",
                "<mm:think>",
                "</mm:think>",
                "<|START_TEXT|>",
                "<|END_TEXT|>",
                "<|START_ACTION|>",
                "<｜DSML｜tool_calls>",
                "</｜DSML｜tool_calls>",
                "function call<|role_sep|>\n",
                "<|tool_call_start|>",
                "<|tool_call_end|>",
                "time(",
                "a=",
                ")",
                "'",
                '"',
                "\n",
            ]
        )
    ),
)
def test_any_text_is_parsed_alike_whole_and_in_letters(dialect: str, words: list[str]) -> None:
    text = "".join(words)
    whole = parse(dialect, [text])
    assert whole == parse(dialect, list(text)) == parse(dialect, words)
    for kind, payload in whole:
        assert kind in ("content", "thinking", "tool_call") and payload
        if kind == "tool_call":
            json.dumps(payload.arguments)


@pytest.mark.parametrize(
    ("template", "parser", "dialect"),
    [
        ("{{ messages }}", None, "plain"),
        ("<|im_start|>", "qwen3-coder", "qwen3_coder"),
        ("<|im_start|>", "glm-4.6", "glm4"),
        ("<|im_start|>", "hermes", "hermes"),
        ("<|start|>assistant<|channel|>", None, "harmony"),
        ("<|tool_call:begin|>{{ id }}<|tool_call:name|>{{ name }}<|tool_call:args|>", None, "solar"),
        ("<think> <tool_call> {{ tool | tojson }}", None, "hermes"),
        ("<think> <tool_call> <function=example>", None, "qwen3_coder"),
        ("<tool_call> <arg_key>", None, "glm4"),
        ("'</think>'", None, "think"),
        ("[INST] [TOOL_CALLS]", None, "mistral"),
        ("<minimax:tool_call> <think>", None, "minimax"),
        ("<|start_header_id|>", None, "llama3"),
        ("<|header_start|> <|python_start|>", None, "llama3"),
        ("<|start_of_role|> <|tool_call|>", None, "granite"),
        ("'<|channel>thought\\n<channel|>'", None, "gemma4"),
        ("{{- '<|tool_call>call:' -}}", None, "gemma4"),
        ("<start_of_turn> <start_function_call>", None, "functiongemma"),
        ("<start_of_turn>", "gemma4", "gemma4"),
        ("<|tool_list_start|>", None, "lfm2"),
        ("'<think>' '<|tool_call_start|>['", None, "lfm2"),
        ("List of tools: [ </think>", None, "lfm2"),
        ("<|im_start|>", "lfm2-thinking", "lfm2"),
        ("<think> <tool_call>", "cogito", "hermes"),
        ("dsml_token = '｜DSML｜' <think>", None, "dsml"),
        ("ns_token = ']<]minimax[>[' ~ '<tool_call>'", None, "minimax_m3"),
        ("<|START_TEXT|> <|START_ACTION|>", None, "cohere"),
        ("'<|open|>' '<|end_of_msg|>'", None, "kimi_k3"),
        ("<|role_sep|> <|message_sep|>", None, "gigachat"),
        ("'<｜hy_Assistant{}｜>'.format(HYTK) '<think{}>' '<tool_call{}>'", None, "hunyuan"),
        ("{{ messages }}", "one of tomorrow", "plain"),
    ],
)
def test_the_dialect_is_found(template: str, parser: str | None, dialect: str) -> None:
    assert dialect_of(template, parser) == dialect


def test_a_parser_of_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match="PARSER klingon is not supported; supported: .*hermes"):
        require_parser("klingon")
    for name in ("olmo3", "cogito", "glm-ocr"):
        require_parser(name)
        assert not known(name)
    assert known("qwen3-coder") and known("harmony")
