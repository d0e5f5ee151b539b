"""Tokens whose text says more than the file's token types: ends of an answer, fill-in-the-middle, channel marks."""

from collections.abc import Mapping

import numpy as np

from gmoe.tokenizer.vocabulary import Vocabulary

UNDEFINED, NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(7)

_ENDS = frozenset(
    "<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> <|endoftext|> <|eom_id|> "
    "<EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> <turn|> <|tool_response> "
    "<｜end▁of▁sentence｜> [e~[".split()
)
_ENDS_IF_CONTROL = frozenset(("<|user|>", "<|observation|>", "</s>"))  # "</s>" may be plain HTML, as in Qwen2
_FILL = {  # looked for where the file does not name the token itself
    "fim_pre": "<|fim_prefix|> <fim-prefix> <fim_prefix> <｜fim▁begin｜> <PRE> ▁<PRE> <|code_prefix|> <|prefix|>",
    "fim_suf": "<|fim_suffix|> <fim-suffix> <fim_suffix> <｜fim▁hole｜> <SUF> ▁<SUF> <|code_suffix|> <|suffix|>",
    "fim_mid": "<|fim_middle|> <fim-middle> <fim_middle> <｜fim▁end｜> <MID> ▁<MID> <|code_middle|> <|middle|>",
    "fim_pad": "<|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD]",
    "fim_rep": "<|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame>",
    "fim_sep": "<|file_sep|>",
}
_FILL_ENDS = ("fim_pad", "fim_rep", "fim_sep")
_SHOWN = frozenset("<|channel|> <|message|> <|start|> <|constrain|>".split())


def correct(tokens: Vocabulary, types: np.ndarray, named: Mapping[str, int]) -> tuple[np.ndarray, frozenset[int]]:
    """The token types as llama.cpp corrects them, and the ids that end an answer.

    `named`: the ids that the file gives a role; its eos, eot, eom, fim_pad, fim_rep and fim_sep end an answer too.
    """
    fill = {role: texts.split() for role, texts in _FILL.items() if role not in named}
    at = tokens.where(_ENDS.union(_ENDS_IF_CONTROL, _SHOWN, *fill.values()))
    types = types.copy()
    fills = {role: {at[text] for text in texts if text in at} for role, texts in fill.items()}
    ends = {at[text] for text in _ENDS & at.keys()}.union(*(fills.get(role, ()) for role in _FILL_ENDS))
    for id in ends.union(*fills.values()):
        types[id] = CONTROL
    ends |= {at[text] for text in _ENDS_IF_CONTROL & at.keys() if types[at[text]] == CONTROL}
    for text in _SHOWN & at.keys():
        types[at[text]] = USER_DEFINED
    ends |= {named[role] for role in ("eos", "eot", "eom", *_FILL_ENDS) if role in named}
    if "<|end|>" in at and {"<|call|>", "<|calls|>"} & at.keys() and {"<|return|>", "<|flush|>"} & at.keys():
        ends.discard(at["<|end|>"])  # there it ends a message, not the answer
        types[at["<|end|>"]] = USER_DEFINED
    if {"<|tool_response>", "</s>"} <= at.keys():
        ends.discard(at["</s>"])
        types[at["</s>"]] = NORMAL
    return types, frozenset(ends)
