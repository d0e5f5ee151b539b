"""Pre-tokenizers: what each `tokenizer.ggml.pre` name means, as data; the patterns are llama.cpp's."""

import difflib
import re
from dataclasses import dataclass

from gmoe.gguf.file import UnsupportedModel

_SUFFIX = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _SUFFIX + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES
_QWEN2 = _SUFFIX + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES
_QWEN35 = _SUFFIX + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + _SPACES
_BAILING = (
    r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"(?:(?=[\p{L}])(?:[^a-z]))", r"(?:(?=[\p{L}])(?:[^A-Z]))"
_WORD = r"[^\r\n\p{L}\p{N}]?"
_GPT4O = (
    f"{_WORD}{_UPPER}*{_LOWER}+{_SUFFIX}?|{_WORD}{_UPPER}+{_LOWER}*{_SUFFIX}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _SPACES
)
_TEKKEN = f"{_WORD}{_UPPER}*{_LOWER}+|{_WORD}{_UPPER}+{_LOWER}*" + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _SPACES


def _class(ranges: str) -> str:
    """Hexadecimal code points and ranges of them -> a character class."""
    ends = ["-".join(re.escape(chr(int(end, 16))) for end in item.split("-")) for item in ranges.split()]
    return "[" + "".join(ends) + "]"


# No white space is in these: where a pattern has no \p, llama.cpp reads any as U+000B.
_CJK = _class("4E00-9FA5 800-167F 1681-1FFF 200B-2027 202A-202E 2030-205E 2060-2FFF 3001-4E00 AC00-D7FF") + "+"
# The cased letters of deepseek-llm: everything that has an upper and a lower form in Unicode.
_CASED = _class(
    "41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F 386 388-38A 38C 38E-3A1 "
    "3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A "
    "1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 "
    "1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128 "
    "212A-212D 212F-2134 2139 213C-213F 2145-2149 214E 2183 2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 A640-A66D "
    "A680-A69B A722-A76F A771-A787 A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F "
    "104B0-104D3 104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943"
)
_MARKS = _class("21-2F 3A-7E FF01-FF0F FF1A-FF5E 2018-201F 3001 3002")
_DEEPSEEK_LLM = ("[\r\n]", r"\s?" + _CASED + "+", r"\s?" + _MARKS + "+", r"\s+$", _CJK, r"\p{N}+")
_DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    _class("4E00-9FA5 3040-309F 30A0-30FF") + "+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"
    + _SPACES,
)
# Digits in threes from the right; what is before a number stays with its first digits for the patterns that follow.
_THREES = r"\P{N}*\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"
# The models' own patterns tell \p{Lu} from \p{Ll}; llama.cpp takes both for \p{L}.
_CASELESS = rf"{_WORD}[\p{{L}}\p{{M}}]+{_SUFFIX}?"
_AYA = _CASELESS + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _SPACES
_MARKS_CJK = "FF01 2026 201C 201D 2018 2019 2014 FF1A FF1B FF0C 3001-303F FE30-FE4F"
_SCRIPTS = ("AC00-D7A3 3131-318E", _MARKS_CJK, "3105-312F", "4E00-9FA5 3040-309F 30A0-30FF")
_YOUTU = (
    "|".join(_class(script) + "+" for script in _SCRIPTS),
    _CASELESS + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _SPACES,
)
_HAN = _class("4E00-9FFF 3400-4DBF 20000-2A6DF 2A700-2B73F 2B740-2B81F 2B820-2CEAF 2CEB0-2EBEF F900-FAFF 2F800-2FA1F")
_KIMI = rf"{_HAN}+|{_WORD}(?:(?!{_HAN})\p{{L}})+{_SUFFIX}?|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|" + _SPACES
_UNSPACED = _class(
    "4E00-9FFF 3400-4DBF 8C48-FAFF 3040-309F 30A0-30FF FF65-FF9F 2F00-2FDF E40-E7F E80-EFF 1780-17FF 1000-109F "
    "AA60-AA7F A9E0-A9FF AC00-D7AF 1100-11FF"
)
_AFMOE = (_THREES, _UNSPACED + "+", _DEEPSEEK_V3[2])
_EXAONE_MOE = (
    rf"{_SUFFIX}|{_WORD}(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]?"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
_SEED = rf"{_SUFFIX}|{_WORD}\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|" + _SPACES
_PORO = " ?[^" + "(\\s|.,!?" + _class("2026 3002 FF0C 3001 964 6D4 60C")[1:-1] + ")]+"
_JAIS2 = (
    _LLAMA3.removesuffix(r"|\s+(?!\S)|\s+")
    + "".join(rf"|\s{{{n}}}(?!\S)" for n in ("512", "256", "128", "64", "32", "16", "8", "4", "1,2"))
    + r"|\s"
)
LINES = r"[^\n]+|\n+"
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")
_FALCON = (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")
_DIGIT_BY_DIGIT = (r"\p{N}", _GPT2)


@dataclass(frozen=True)
class Pretokenizer:
    """Each pattern splits what the one before left; `ignore_merges` takes a piece whole where it is a token."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    forces_bos: bool = False  # whatever the file says
    raw: bool = False  # UTF-8 with U+2581 for the space, not GPT-2's byte alphabet
    whole_newlines: bool = False  # a run of newlines that is a token is taken whole
    clean_spaces: bool = False  # decode drops the spaces before punctuation


PRETOKENIZERS: dict[str, Pretokenizer] = {}
for _names, _row in (
    (("default",), Pretokenizer(_DEFAULT, clean_spaces=True)),
    (
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
        Pretokenizer((_LLAMA3,), ignore_merges=True, add_bos=True, clean_spaces=True),
    ),
    (("dbrx", "smaug-bpe"), Pretokenizer((_LLAMA3,), clean_spaces=True)),
    (("chatglm-bpe", "glm4", "glm5"), Pretokenizer((_LLAMA3,), clean_spaces=True)),
    (("deepseek-llm",), Pretokenizer(_DEEPSEEK_LLM)),
    (("deepseek-coder",), Pretokenizer(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}"))),
    (("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"), Pretokenizer(_DEEPSEEK_V3)),
    (("falcon",), Pretokenizer(_FALCON, clean_spaces=True)),
    (
        ("starcoder", "refact", "codeshell", "exaone", "minerva-7b", "mellum2"),
        Pretokenizer(_DIGIT_BY_DIGIT, clean_spaces=True),
    ),
    (("command-r", "smollm"), Pretokenizer(_DIGIT_BY_DIGIT)),
    (
        ("gpt-2", "phi-2", "mpt", "olmo", "jais", "granite", "gigachat", "a.x-4.0", "mellum", "exaone4"),
        Pretokenizer((_GPT2,), clean_spaces=True),
    ),
    (("trillion", "granite-docling"), Pretokenizer((_GPT2,))),
    (
        ("qwen2", "deepseek-r1-qwen", "megrez", "hunyuan", "kormo", "solar-open", "grok-2", "f2llmv2"),
        Pretokenizer((_QWEN2,)),
    ),
    (("ufakzeka",), Pretokenizer((_QWEN2.removeprefix(_SUFFIX + "|"),))),
    (("stablelm2",), Pretokenizer((_QWEN2,), clean_spaces=True)),
    (("qwen35",), Pretokenizer((_QWEN35,))),
    (("gpt-4o", "llama4", "minimax-m2", "kanana2", "talkie"), Pretokenizer((_GPT4O,))),
    (("tekken",), Pretokenizer((_TEKKEN,), ignore_merges=True, add_bos=True)),
    (("bailingmoe", "bailingmoe2", "llada-moe"), Pretokenizer((_BAILING,))),
    (("tiny_aya", "cohere2moe"), Pretokenizer((_THREES, _AYA))),
    (("kimi-k2",), Pretokenizer((_KIMI,))),
    (("afmoe",), Pretokenizer(_AFMOE)),
    (("exaone-moe",), Pretokenizer((_EXAONE_MOE,), clean_spaces=True)),
    (("seed-coder",), Pretokenizer((_SEED,))),
    (("minicpm5",), Pretokenizer((r"\p{N}{1,3}", _LLAMA3), ignore_merges=True, clean_spaces=True)),
    (("jais-2",), Pretokenizer((_JAIS2,), clean_spaces=True)),
    (("youtu",), Pretokenizer(_YOUTU, ignore_merges=True)),
    (("laguna",), Pretokenizer((LINES, _QWEN2))),
    (("superbpe",), Pretokenizer((r"\p{N}+", r"(?=([0-9]{3})+(?![0-9]))"))),
    (("poro-chat",), Pretokenizer((_PORO,))),
    (("bloom", "gpt3-finnish"), Pretokenizer((_PORO,), clean_spaces=True)),
    (("viking",), Pretokenizer((_PORO, r"\p{N}"))),
    (("gemma4",), Pretokenizer((LINES,), forces_bos=True, raw=True, whole_newlines=True, clean_spaces=True)),
    (("sarvam-moe",), Pretokenizer((LINES,), raw=True)),
):
    PRETOKENIZERS |= dict.fromkeys(_names, _row)


def pretokenizer(name: str, file: str) -> Pretokenizer:
    """The row of a name; an unknown one is an error naming it and the nearest known."""
    if name in PRETOKENIZERS:
        return PRETOKENIZERS[name]
    near = difflib.get_close_matches(name, PRETOKENIZERS, 1, 0.0)
    raise UnsupportedModel(file, "tokenizer.ggml.pre", f"{name!r} is not supported; the nearest known is {near[0]!r}")
