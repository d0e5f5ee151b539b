"""The streaming rewrite: identity is byte-equal; drop, replace, rename and split; nothing half-written stays."""

import os
from collections.abc import Iterable
from pathlib import Path

import gguf
import numpy as np
import pytest
from gmoe.kernels.formats import FORMATS, QuantTensor

from gmoe.gguf import rewrite as rewriting
from gmoe.gguf.file import GGUFFile, TensorInfo
from gmoe.gguf.rewrite import identity, rewrite
from tests.factory import write_model
from tests.test_gguf import write_split

Rows = Iterable[tuple[str, QuantTensor]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("rewrite") / "tiny.gguf", "qwen3moe", quant="Q8_0")


def same_tensors(a: GGUFFile, b: GGUFFile) -> bool:
    same = {n: (i.shape, i.format.name) for n, i in a.tensors.items()} == {
        n: (i.shape, i.format.name) for n, i in b.tensors.items()
    }
    return same and all(np.array_equal(a.view(name).data, b.view(name).data) for name in a.tensors)


def test_identity_keeps_every_tensor_and_key(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    with GGUFFile.open(model) as src:
        rewrite(src, out, identity)
        with GGUFFile.open(out) as dst:
            assert same_tensors(src, dst)
            assert [dst.stored(key).tobytes() for key in dst.metadata] == [
                src.stored(k).tobytes() for k in src.metadata
            ]
    assert list(tmp_path.iterdir()) == [out]
    again = tmp_path / "again.gguf"
    rewrite(GGUFFile.open(out), again, identity)
    assert again.read_bytes() == out.read_bytes()


def test_gguf_py_reads_the_result(model: Path, tmp_path: Path) -> None:
    rewrite(GGUFFile.open(model), tmp_path / "out.gguf", identity)
    want, got = gguf.GGUFReader(model), gguf.GGUFReader(tmp_path / "out.gguf")
    assert [t.name for t in got.tensors] == [t.name for t in want.tensors]
    assert all(np.array_equal(a.data, b.data) for a, b in zip(got.tensors, want.tensors, strict=True))


def test_a_file_may_replace_itself(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "self.gguf"
    path.write_bytes(model.read_bytes())
    src = GGUFFile.open(path)
    rewrite(src, path, identity, {"general.name": "renamed"})
    with GGUFFile.open(path) as dst:
        assert dst.metadata["general.name"] == "renamed"
        assert same_tensors(src, dst)


@pytest.mark.parametrize("chunk", [64, 16 << 20])
def test_drop_split_rename_and_replace(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(rewriting, "_CHUNK", chunk)  # a longer or shorter header moves what has been written
    zeros = QuantTensor(np.zeros((2, 16), np.uint8), FORMATS["F32"], (2, 4))

    def edit(info: TensorInfo, tensor: QuantTensor) -> Rows:
        if info.name == "output_norm.weight":
            return []
        if info.name == "token_embd.weight":
            return [(info.name, zeros)]
        if info.name.endswith("ffn_down_exps.weight"):
            part = QuantTensor(tensor.data[0], tensor.format, tensor.shape[1:])
            return [(f"{info.name}.{e}", part) for e in range(20)]
        return [(info.name, tensor)]

    with GGUFFile.open(model) as src:
        rewrite(src, tmp_path / "more.gguf", edit)
        rewrite(src, tmp_path / "less.gguf", lambda info, t: [("x", t)] if info.name == "output.weight" else [])
        more, less = GGUFFile.open(tmp_path / "more.gguf"), GGUFFile.open(tmp_path / "less.gguf")
        assert "output_norm.weight" not in more.tensors
        assert more.tensors["token_embd.weight"].format.name == "F32"
        assert not more.view("token_embd.weight").data.any()
        for name in src.tensors:
            if name.endswith("ffn_down_exps.weight"):
                assert np.array_equal(more.view(f"{name}.19").data, src.view(name).data[0])
            elif name not in ("output_norm.weight", "token_embd.weight"):
                assert np.array_equal(more.view(name).data, src.view(name).data)
        assert list(less.tensors) == ["x"]
        assert np.array_equal(less.view("x").data, src.view("output.weight").data)


def test_metadata_is_added_replaced_and_dropped(model: Path, tmp_path: Path) -> None:
    news = {
        "a.bool": True, "a.small": 7, "a.negative": -7, "a.large": 1 << 40, "a.float": 0.5, "a.text": "né",
        "a.half": np.uint16(3), "a.numbers": [1, -2], "a.texts": ["x", "yy"], "a.bytes": np.array([1, 2], np.uint8),
    }  # fmt: skip
    rewrite(GGUFFile.open(model), tmp_path / "out.gguf", identity, news | {"general.name": None, "absent": None})
    with GGUFFile.open(tmp_path / "out.gguf") as dst:
        assert {k: list(v) if np.ndim(v) else v for k, v in dst.metadata.items() if k in news} == {
            k: list(v) if np.ndim(v) else v for k, v in news.items()
        }
        assert "general.name" not in dst.metadata
        kinds = {key: int(dst.stored(key)[0]) for key in ("a.bool", "a.small", "a.negative", "a.large", "a.half")}
    assert kinds == {"a.bool": 7, "a.small": 4, "a.negative": 5, "a.large": 10, "a.half": 2}


def test_parts_become_one_file(model: Path, tmp_path: Path) -> None:
    first = write_split(model, tmp_path, 3)[0]
    rewrite(GGUFFile.open(first), tmp_path / "whole.gguf", identity)
    with GGUFFile.open(tmp_path / "whole.gguf") as whole, GGUFFile.open(model) as src:
        assert "split.count" not in whole.metadata
        assert same_tensors(whole, src)


def test_nothing_is_left_of_a_rewrite_that_fails(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    out.write_bytes(b"before")
    with pytest.raises(ValueError, match="two tensors would be named 'same'"):
        rewrite(GGUFFile.open(model), out, lambda _, tensor: [("same", tensor)])
    wrong = QuantTensor(np.zeros(3, np.uint8), FORMATS["F32"], (1,))
    with pytest.raises(ValueError, match="3 bytes are not a F32 tensor of shape"):
        rewrite(GGUFFile.open(model), out, lambda info, _: [(info.name, wrong)])
    assert out.read_bytes() == b"before"
    out.unlink()
    os.mkfifo(out)  # as a device would be, which was replaced by a file
    with pytest.raises(ValueError, match="is not a file that could be written anew"):
        rewrite(GGUFFile.open(model), out, identity)
    assert list(tmp_path.iterdir()) == [out] and out.is_fifo()
