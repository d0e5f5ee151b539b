"""The model that comes with gmoe: it is there, it was trained, and its recorded answers are still its answers."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from gmoe import LLM, RuntimeOptions
from gmoe.cli.main import cli
from gmoe.experts.trace import Trace
from gmoe.library.demo import DEMO
from tools.demo.corpus import DOMAINS

DATA = Path(__file__).parent / "data"
STORY = (
    "Once upon a time there was a king who had three sons. The youngest of them was so good that everybody loved him,"
    " but his brothers were proud, and they said to each other that he should not have the kingdom when the old king"
    " was dead. One day the king fell ill, and he sent for them all."
)
CODE = (
    "def find(self, name):\n    for item in self.items:\n        if item.name == name:\n            return item\n"
    "    return None\n\n\nclass Node:\n    def __init__(self, value):\n        self.value = value\n"
    "        self.next = None\n"
)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM.load(DEMO, RuntimeOptions(activations="float", kv_type="f32")) as llm:
        yield llm


def test_it_is_small_enough_to_come_along() -> None:
    assert DEMO.stat().st_size < 20_000_000
    assert (DEMO.parent / "README.md").is_file()


@pytest.mark.parametrize("text, most", [(STORY, 2.0), (CODE, 2.0)])
def test_it_was_trained(llm: LLM, text: str, most: float) -> None:
    """Bits a byte; a file of random weights takes four or more."""
    ids = llm.tokenizer.encode(text, add_special=False)
    logits = llm.logits(ids)[:-1].astype(np.float64)
    chances = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    bits = -chances[np.arange(len(ids) - 1), ids[1:]].sum() / math.log(2)
    assert bits / len(text.encode()) < most


def test_the_command_knows_it_by_name() -> None:
    arguments = ["run", "demo", "What is 2 plus 3?", "--max-tokens", "8", "--temperature", "0"]
    first, second = (CliRunner().invoke(cli, arguments) for _ in range(2))
    assert first.exit_code == 0 and first.stdout.strip()
    assert first.stdout == second.stdout


def test_the_recorded_traces_are_its_own(llm: LLM) -> None:
    trace = Trace.load(DATA / "demo_test.npz", llm.record().header.fingerprint)
    assert set(trace.header.tasks) == set(DOMAINS)
    assert trace.ids.shape[1] == 4 and trace.header.n_layer == 6


def test_llamacpp_gave_the_same_logits(llm: LLM) -> None:
    recorded = np.load(DATA / "demo_llamacpp.npz")
    ours = llm.logits(recorded["ids"].tolist())[recorded["rows"]]
    far = np.abs(ours - recorded["logits"])
    assert far.mean() < 0.05  # llama.cpp rounds activations to 8 bits before each product
    assert (ours.argmax(-1) == recorded["logits"].argmax(-1)).mean() > 0.9
