"""pack: nothing but names and places changes, and an expert is one read."""

import numpy as np
import pytest
from click.testing import CliRunner

import gmoe
from gmoe.cli.pack import pack as command
from gmoe.experts.slots import extents
from gmoe.gguf.file import GGUFFile, UnsupportedModel
from gmoe.gguf.hparams import Hparams
from gmoe.gguf.layout import ExpertLayout
from gmoe.passes.pack import pack
from tests.factory import ARCHITECTURES, write_model
from tools.bench_pack import main as bench

IDS = [3, 1, 4, 1, 5]


def layout(file: GGUFFile) -> ExpertLayout:
    hparams = Hparams.from_metadata(file.metadata, "m")
    return ExpertLayout(file, hparams.n_layer, hparams.n_expert)


@pytest.mark.parametrize("architecture", [name for name, row in ARCHITECTURES.items() if row.shape.expert])
def test_pack_is_lossless(architecture, tmp_path):
    stock, packed = write_model(tmp_path / "a.gguf", architecture), tmp_path / "b.gguf"
    pack(stock, packed)
    with GGUFFile.open(stock) as a, GGUFFile.open(packed) as b:
        before, after = layout(a), layout(b)
        assert before.layers.keys() == after.layers.keys()
        for layer, stacks in before.layers.items():
            for old, new in zip(stacks, after.layers[layer], strict=True):
                assert (old is None) == (new is None)
                if old is not None:
                    assert all((x == y).all() for x, y in zip(old.matrices, new.matrices, strict=True))
                    assert (old.bias is None) == (new.bias is None)
        rest = set(a.tensors) - before.names
        assert rest == set(b.tensors) - after.names
        assert all((np.asarray(a.view(n).data) == np.asarray(b.view(n).data)).all() for n in rest)
        assert {k: bytes(a.stored(k)) for k in a.metadata} == {k: bytes(b.stored(k)) for k in b.metadata}
        assert all(len(extent.reads) == 1 for extent in extents(after).values())
    options = gmoe.RuntimeOptions(context=64, max_sequences=1)
    with gmoe.LLM.load(stock, options) as a, gmoe.LLM.load(packed, options) as b:
        assert (a.logits(IDS) == b.logits(IDS)).all()


def test_a_packed_model_runs_out_of_slots(tmp_path):
    stock, packed = write_model(tmp_path / "a.gguf"), tmp_path / "b.gguf"
    ran = CliRunner().invoke(command, [str(stock), str(packed)])
    assert ran.exit_code == 0, ran.output
    assert ran.stdout == "" and ran.stderr.startswith(f"{packed}: ")
    with gmoe.LLM.load(packed, gmoe.RuntimeOptions(context=64, max_sequences=1)) as llm:
        want, budget = llm.logits(IDS), llm.budget
    memory = str(budget.fixed + 5 * max(group.slot_bytes for group in budget.groups))
    with gmoe.LLM.load(packed, gmoe.RuntimeOptions(context=64, max_sequences=1, host_memory=memory)) as llm:
        assert not llm.store.whole and (llm.logits(IDS) == want).all()


def test_what_cannot_be_packed_is_refused(tmp_path):
    pack(write_model(tmp_path / "a.gguf"), tmp_path / "b.gguf")
    with pytest.raises(UnsupportedModel, match="no stacked experts"):
        pack(tmp_path / "b.gguf", tmp_path / "c.gguf")
    assert not (tmp_path / "c.gguf").exists()


def test_the_bench_runs(tmp_path, capsys):
    pack(write_model(tmp_path / "a.gguf"), tmp_path / "b.gguf")
    bench([str(tmp_path / "a.gguf"), str(tmp_path / "b.gguf"), "--experts", "8", "--rounds", "1"])
    assert "gain" in capsys.readouterr().out
