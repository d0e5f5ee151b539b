"""How text is cut into words before byte-pair merging: one row a `tokenizer.ggml.pre` name, as llama.cpp cuts it."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from gmoe.gguf.file import UnsupportedModel


@dataclass(frozen=True)
class PreTokenizer:
    """The cutting rules of one family of tokenizers.

    `patterns`: Oniguruma regexes, each applied to the pieces that the one before left; a match is a piece, and so is
    what lies between matches. `ignore_merges`: a word that is itself a token is taken whole. `add_bos`: the default
    where the file says nothing, `forces_bos`: whatever the file says. `spaces_escaped`: text is raw UTF-8 with U+2581 for the space (SentencePiece's manner)
    instead of GPT-2's byte alphabet, and a run of newlines that is a token is taken whole.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    spaces_escaped: bool = False
    forces_bos: bool = False


def find(name: str, file: str) -> PreTokenizer:
    """The row called `name`; raises UnsupportedModel, naming `file` and the nearest known name."""
    if name in PRE_TOKENIZERS:
        return PRE_TOKENIZERS[name]
    nearest = difflib.get_close_matches(name, PRE_TOKENIZERS, n=1, cutoff=0.0)[0]
    raise UnsupportedModel(
        file, "tokenizer.ggml.pre", f"{name!r} is not a known pre-tokenizer; the nearest known one is {nearest!r}"
    )


def _ranges(spec: str) -> str:
    """The inside of a character class from hexadecimal code points and ranges of them."""
    return "".join("-".join(chr(int(end, 16)) for end in item.split("-")) for item in spec.split())


_CASED = _ranges(
    "41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F 386 388-38A 38C 38E-3A1 "
    "3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A "
    "1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 "
    "1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128 "
    "212A-212D 212F-2134 2139 213C-213F 2145-2149 214E 2183 2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 A640-A66D "
    "A680-A69B A722-A76F A771-A787 A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F "
    "104B0-104D3 104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943"
)
_WIDE_PUNCTUATION = _ranges("21-2F 3A-7E FF01-FF0F FF1A-FF5E 2018-201F 3000-3002")
_EAST_ASIAN = _ranges("4E00-9FA5 800-4E00 AC00-D7FF")
_KANA_OR_HAN = _ranges("4E00-9FA5 3040-309F 30A0-30FF")
_UNSPACED = _ranges(
    "4E00-9FFF 3400-4DBF F900-FAFF 3040-309F 30A0-30FF FF65-FF9F 2F00-2FDF E40-E7F E80-EFF 1780-17FF 1000-109F "
    "AA60-AA7F A9E0-A9FF AC00-D7AF 1100-11FF"
)
_HAN = _ranges("4E00-9FFF 3400-4DBF 20000-2A6DF 2A700-2B73F 2B740-2B81F 2B820-2CEAF 2CEB0-2EBEF F900-FAFF 2F800-2FA1F")
_SENTENCE_MARKS = "(\\s|.,!?" + _ranges("2026 3002 FF0C 3001 964 6D4 60C") + ")"

_SUFFIX = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER = r"(?:(?=\p{L})[^a-z])"  # only ASCII letters have a case here
_LOWER = r"(?:(?=\p{L})[^A-Z])"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_DEEPSEEK3_WORDS = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"
    + _SPACES
)
_LINES = r"[^\n]+|\n+"


def _camel(upper: str, lower: str, suffix: str, digits: str) -> str:
    """Words cut where a lower-case letter meets an upper-case one (tekken, o200k)."""
    lead = r"[^\r\n\p{L}\p{N}]?"
    words = f"{lead}{upper}*{lower}+{suffix}|{lead}{upper}+{lower}*{suffix}"
    return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"


_gpt2 = PreTokenizer((_GPT2,))
_default = PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"))
_falcon = PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]"))
_starcoder = PreTokenizer((r"\p{N}", _GPT2))
_llama3 = PreTokenizer((rf"{_SUFFIX}|{_WORD}|\p{{N}}{{1,3}}|{_SYMBOLS}|{_SPACES}",))
_llama_bpe = replace(_llama3, ignore_merges=True, add_bos=True)
_qwen2 = PreTokenizer((rf"{_SUFFIX}|{_WORD}|\p{{N}}|{_SYMBOLS}|{_SPACES}",))
_qwen35 = PreTokenizer(
    (rf"{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}",)
)
_deepseek_llm = PreTokenizer(
    (r"[\r\n]", rf"\s?[{_CASED}]+", rf"\s?[{_WIDE_PUNCTUATION}]+", r"\s+\z", f"[{_EAST_ASIAN}]+", r"\p{N}+")
)
_deepseek_coder = PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", f"[{_EAST_ASIAN}]+", r"\p{N}"))
_deepseek_v3 = PreTokenizer((r"\p{N}{1,3}", f"[{_KANA_OR_HAN}]+", _DEEPSEEK3_WORDS))
_gpt4o = PreTokenizer((_camel(_UPPER, _LOWER, f"{_SUFFIX}?", r"\p{N}{1,3}"),))
_tekken = PreTokenizer((_camel(_UPPER, _LOWER, "", r"\p{N}"),), ignore_merges=True, add_bos=True)
_aya = PreTokenizer(
    (
        r"\d{1,3}(?=(?:\d{3})*\b)",
        _camel(
            r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]", f"{_SUFFIX}?", r"\p{N}{1,3}"
        ),
    )
)
_bailing = PreTokenizer(
    (
        rf"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|{_WORD}|\p{{N}}|{_SYMBOLS}|"
        r"\s*[\r\n]|\s+(?!\S)|\s+",
    )
)
_seed_coder = PreTokenizer((rf"{_SUFFIX}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}",))
_kimi = PreTokenizer(
    (
        rf"[{_HAN}]+|[^\r\n\p{{L}}\p{{N}}]?(?:(?![{_HAN}])\p{{L}})+{_SUFFIX}?|\p{{N}}{{1,3}}|{_SYMBOLS}|{_SPACES}",
    )
)
_afmoe = PreTokenizer((r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))", f"[{_UNSPACED}]+", _DEEPSEEK3_WORDS))
_poro = PreTokenizer((f" ?[^{_SENTENCE_MARKS}]+",))
_exaone_moe = PreTokenizer(
    (
        rf"{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
    )
)
_chameleon = PreTokenizer(
    (
        "<sentinel:[0-9]+>",
        "(?:IMGIMG)(?:[A-I]{1,4})Z",
        r"[\t\n]|    |  ",
        r"\p{N}",
        r"[\p{P}!-/:-@\[-`{-~]",
        _GPT2,
    ),
    add_bos=True,
)
_gemma4 = PreTokenizer((_LINES,), forces_bos=True, spaces_escaped=True)

_FAMILIES: tuple[tuple[str, PreTokenizer], ...] = (
    ("default", _default),
    ("llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2", _llama_bpe),
    ("dbrx smaug-bpe glm4 chatglm-bpe", _llama3),
    ("minicpm5", replace(_llama3, patterns=(r"\p{N}{1,3}", *_llama3.patterns), ignore_merges=True)),
    ("deepseek-llm", _deepseek_llm),
    ("deepseek-coder", _deepseek_coder),
    ("deepseek-v3 hunyuan-dense joyai-llm hy_v4", _deepseek_v3),
    ("falcon", _falcon),
    ("starcoder refact command-r smollm codeshell exaone minerva-7b mellum2", _starcoder),
    ("gpt-2 phi-2 mpt olmo jais trillion granite-docling gigachat a.x-4.0 mellum exaone4", _gpt2),
    ("qwen2 deepseek-r1-qwen kormo stablelm2 hunyuan solar-open megrez grok-2", _qwen2),
    ("qwen35", _qwen35),
    ("gpt-4o llama4 kanana2 talkie minimax-m2", _gpt4o),
    ("tekken", _tekken),
    ("tiny_aya cohere2moe", _aya),
    ("bailingmoe bailingmoe2 llada-moe", _bailing),
    ("seed-coder", _seed_coder),
    ("kimi-k2", _kimi),
    ("afmoe", _afmoe),
    ("poro-chat bloom gpt3-finnish", _poro),
    ("viking", PreTokenizer((*_poro.patterns, r"\p{N}"))),
    ("superbpe", PreTokenizer((r"\p{N}+", r"(?=(\d{3})+(?!\d))"))),
    ("laguna", PreTokenizer((_LINES, *_qwen2.patterns))),
    ("exaone-moe", _exaone_moe),
    ("chameleon", _chameleon),
    ("gemma4", _gemma4),
    ("sarvam-moe", replace(_gemma4, forces_bos=False)),
)
PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {name: row for names, row in _FAMILIES for name in names.split()}
