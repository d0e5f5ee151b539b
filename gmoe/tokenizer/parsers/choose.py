"""Which dialect a model speaks: what its Modelfile says, or what its chat template shows."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType

from gmoe.tokenizer.parsers.arguments import Tools
from gmoe.tokenizer.parsers.tags import THINK, Parser

_SIGNS = (  # the first that a template contains
    ("<|channel|>", "harmony"),
    ("<|tool_call:args|>", "solar"),
    ("｜DSML｜", "dsml"),
    ("]<]minimax[>[", "minimax_m3"),
    ("<|START_TEXT|>", "cohere"),
    ("<|end_of_msg|>", "kimi_k3"),
    ("<|role_sep|>", "gigachat"),
    ("hy_Assistant", "hunyuan"),
    ("<|channel>", "gemma4"),
    ("<|tool_call>", "gemma4"),
    ("<start_function_call>", "functiongemma"),
    ("<minimax:tool_call>", "minimax"),
    ("<｜tool▁calls▁begin｜>", "deepseek"),
    ("<|tool_calls_section_begin|>", "kimi"),
    ("<arg_key>", "glm4"),
    ("<function=", "qwen3_coder"),
    ("[TOOL_CALLS]", "mistral"),
    ("<|tool_call|>", "granite"),
    ("<|tool_call_start|>", "lfm2"),
    ("<|tool_list_start|>", "lfm2"),
    ("<tool_call>", "hermes"),
    ("<|python_tag|>", "llama3"),
    ("<|start_header_id|>", "llama3"),
    ("<|header_start|>", "llama3"),
    ("[THINK]", "mistral"),
    ("List of tools: [", "lfm2"),
    ("</think>", "think"),
    ("<think>", "think"),
)
_OLLAMA = {  # Ollama's names for PARSER
    "passthrough": "plain",
    "qwen3": "hermes",
    "qwen3-thinking": "hermes",
    "qwen3-vl-instruct": "hermes",
    "qwen3-vl-thinking": "hermes",
    "qwen3-coder": "qwen3_coder",
    "qwen3.5": "qwen3_coder",
    "qwen3.8": "qwen3_coder",
    "nemotron3": "qwen3_coder",
    "deepseek3": "deepseek",
    "glm-4.6": "glm4",
    "glm-4.7": "glm4",
    "minimax-m2": "minimax",
    "ministral": "mistral",
    "kimi-k2": "kimi",
    "lfm2-thinking": "lfm2",
    "olmo3-think": "think",
}
_WRITTEN_ELSEWHERE = frozenset(  # Ollama's too, for which there is no file here
    "cogito deepseek-ocr glm-ocr glimmer laguna nemotron-3-nano olmo3 qwen3-vl".split()
)
_NO_DIALECTS = {"arguments", "choose", "sections", "tags", "__init__"}
DIALECTS = tuple(sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in _NO_DIALECTS))


def dialect_of(template: str, parser: str | None = None) -> str:
    """The name of a dialect; `parser` is the Modelfile's PARSER, and where it is not `known` the template decides."""
    if parser and known(parser):
        return _named(parser)
    return next((name for sign, name in _SIGNS if sign in template), "plain")


def known(parser: str) -> bool:
    """Whether a PARSER names a dialect."""
    return _named(parser) in DIALECTS


def require_parser(parser: str) -> None:
    """Raises ValueError where a PARSER is neither `known` nor one of Ollama's."""
    if not known(parser) and parser not in _WRITTEN_ELSEWHERE:
        names = ", ".join(sorted({*DIALECTS, *_OLLAMA}))
        raise ValueError(f"PARSER {parser} is not supported; supported: {names}")


def _named(parser: str) -> str:
    return _OLLAMA.get(parser, parser.replace("-", "_"))


def parser_for(dialect: str, tools: Tools | None = None, prompt: str = "") -> Parser:
    """A parser of one answer to `prompt`, the rendered text; without tools no call is looked for."""
    parser: Parser = _module(dialect).parser(tools or (), prompt)
    return parser


def marks_of(dialect: str) -> tuple[str, ...]:
    """The tokens whose text a parser must see, although they are no text."""
    marks: tuple[str, ...] = _module(dialect).MARKS
    return marks


def thinking_of(dialect: str) -> tuple[str | None, str | None]:
    """The tag that begins thinking, and the text behind which the answer proper does; None: the dialect shows none."""
    usual = THINK if set(THINK) <= set(marks_of(dialect)) else (None, None)
    begin, end = getattr(_module(dialect), "THINKING", usual)
    return begin, getattr(_module(dialect), "ANSWER", end)


def end_of_thinking(dialect: str) -> str | None:
    """The text behind which the answer proper begins, where a model has thought; None: the dialect shows none."""
    return thinking_of(dialect)[1]


def headed(dialect: str) -> bool:
    """Whether that text is there even where a model has not thought."""
    return getattr(_module(dialect), "HEADED", False)


def call_id(dialect: str, name: str, n: int) -> str:
    """The id of the n-th call, of this function, where nobody gave it one."""
    own: Callable[[str, int], str] = getattr(_module(dialect), "call_id", lambda name, n: f"call_{n:024x}")
    return own(name, n)


def taken_id(dialect: str, id: str, name: str, n: int) -> str:
    """The id of the n-th call, of this function, as this dialect's templates take it: `id` may be another model's."""
    own: Callable[[str, str, int], str] = getattr(_module(dialect), "taken_id", lambda id, name, n: id)
    return own(id, name, n)


def _module(dialect: str) -> ModuleType:
    return import_module(f"gmoe.tokenizer.parsers.{dialect}")
