"""LLM: the one place that assembles the parts; text in, events out."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from gmoe.engine.engine import Engine
from gmoe.engine.loop import EngineLoop
from gmoe.engine.sampling import SamplingParams
from gmoe.engine.sequence import Sequence as TokenSequence
from gmoe.experts.dispatch import ExpertDispatch
from gmoe.experts.store import ExpertStore
from gmoe.gguf.file import GGUFFile
from gmoe.gguf.hparams import Hparams
from gmoe.gguf.layout import ExpertLayout
from gmoe.layers.weights import Weights
from gmoe.models import decoder
from gmoe.options import RuntimeOptions
from gmoe.tokenizer.chat import ChatTemplate
from gmoe.tokenizer.stream import Detokenizer
from gmoe.tokenizer.tokenizer import Tokenizer

Message = Mapping[str, Any]


@dataclass(frozen=True)
class TextEvent:
    """A piece of an answer; `finish_reason` is None but on the last: "stop", "length" or "abort"."""

    text: str
    token_id: int | None
    finish_reason: str | None = None
    logprobs: Any = None
