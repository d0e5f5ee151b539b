"""The GGUF reader: what gguf-py reads, what a split model is, and how a bad file is refused."""

import os
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from gmoe.experts.device_budget import token_bytes
from gmoe.gguf.file import GGUFError, GGUFFile, InvalidFile, UnsupportedModel
from gmoe.gguf.hparams import Hparams
from gmoe.gguf.layout import ExpertLayout
from tests.factory import write_model

FIXTURES = Path(__file__).parents[2] / "shared" / "fixtures"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("gguf") / "tiny.gguf", "qwen3moe", quant="Q8_0")


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def header(keys: int = 0, tensors: int = 0, version: int = 3, magic: bytes = b"GGUF") -> bytes:
    return magic + struct.pack("<IQQ", version, tensors, keys)


def tensor(name: bytes = b"t", dims: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def test_reads_what_gguf_py_reads(model: Path) -> None:
    oracle = gguf.GGUFReader(str(model))
    with GGUFFile.open(model) as file:
        assert set(file.tensors) == {t.name for t in oracle.tensors}
        for t in oracle.tensors:
            view = file.view(t.name)
            assert view.shape == tuple(int(n) for n in t.shape[::-1])
            assert view.format.name == t.tensor_type.name
            assert np.asarray(view.data).tobytes() == t.data.tobytes()
        for name, value in oracle.fields.items():
            if not name.startswith("GGUF."):
                assert (
                    list(file.metadata[name]) == list(value.contents())
                    if isinstance(value.contents(), list)
                    else file.metadata[name] == pytest.approx(value.contents())
                )


@pytest.mark.skipif(not FIXTURES.exists(), reason="no shared fixtures beside the checkout")
def test_reads_every_shared_fixture() -> None:
    for path in [*FIXTURES.glob("open/*.gguf"), *FIXTURES.glob("vocab/*.gguf")]:
        with GGUFFile.open(path) as file:
            assert file.architecture


def test_nothing_is_copied_and_views_outlive_the_file(model: Path) -> None:
    file = GGUFFile.open(model)
    view = file.view("token_embd.weight")
    assert not np.asarray(view.data).flags.owndata
    want = np.asarray(view.data).copy()
    file.close()
    del file
    assert np.array_equal(view.data, want)


def test_every_value_type(tmp_path: Path) -> None:
    values = [
        (0, struct.pack("<B", 200), 200), (1, struct.pack("<b", -3), -3), (2, struct.pack("<H", 60000), 60000),
        (3, struct.pack("<h", -300), -300), (4, struct.pack("<I", 1 << 31), 1 << 31), (5, struct.pack("<i", -7), -7),
        (6, struct.pack("<f", 0.5), 0.5), (7, b"\1", True), (8, string(b"caf\xc3\xa9"), "café"),
        (10, struct.pack("<Q", 1 << 60), 1 << 60), (11, struct.pack("<q", -1), -1), (12, struct.pack("<d", 0.1), 0.1),
    ]  # fmt: skip
    body = b"".join(string(b"k%d" % kind) + struct.pack("<I", kind) + raw for kind, raw, _ in values)
    body += string(b"strings") + struct.pack("<IIQ", 9, 8, 2) + string(b"a") + string(b"bc")
    body += string(b"bools") + struct.pack("<IIQ", 9, 7, 2) + b"\0\1"
    path = tmp_path / "v.gguf"
    for version in (2, 3):
        path.write_bytes(header(len(values) + 2, version=version) + body)
        metadata = GGUFFile.open(path).metadata
        assert [metadata[f"k{kind}"] for kind, _, _ in values] == [value for _, _, value in values]
        assert list(metadata["strings"]) == ["a", "bc"]
        assert metadata["bools"].tolist() == [False, True]


BAD = {
    "it is empty": b"",
    "it begins with b'GGML'": header(magic=b"GGML"),
    "it ends inside the version": b"GGUF\3",
    "version: 1 is not supported; supported: 2, 3": header(version=1),
    "the file is big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "do not fit into": header(keys=1 << 60),
    "9223372036854775807 tensors": header(tensors=(1 << 63) - 1),
    "the length of a metadata key": header(1) + struct.pack("<Q", 1 << 40) + b"x" * 20,
    "a metadata key is not UTF-8": header(1) + string(b"\xff\xfe") + struct.pack("<IB", 0, 1) + b"pad" * 4,
    "has the unknown type 99": header(1) + string(b"k") + struct.pack("<I", 99),
    "of 1099511627776 entries does not fit": header(1) + string(b"k") + struct.pack("<IIQ", 9, 4, 1 << 40),
    "it ends inside the array k": header(1) + string(b"k") + struct.pack("<IIQQ", 9, 8, 1, 1 << 50),
    "arrays of arrays are not supported": header(1) + string(b"k") + struct.pack("<IIQ", 9, 9, 0),
    "the key 'k' stands there twice": header(2) + 2 * (string(b"k") + struct.pack("<IB", 0, 1)),
    "is 3, not a power of two": header(1) + string(b"general.alignment") + struct.pack("<II", 4, 3),
    "general.alignment is True, not a power of two": header(1)
    + string(b"general.alignment")
    + struct.pack("<IB", 7, 1),
    "split.count is 2.0, not a number of parts": header(1) + string(b"split.count") + struct.pack("<If", 6, 2),
    "has 5 dimensions": header(tensors=1) + tensor(dims=(1,) * 5),
    "has an empty dimension": header(tensors=1) + tensor(dims=(32, 0)),
    "quant type 42": header(tensors=1) + tensor(kind=42) + bytes(256),
    "quant type 41 (Q1_0) is not supported; supported: F64, F32": header(tensors=1) + tensor(kind=41) + bytes(256),
    "quant type 4242 is not supported": header(tensors=1) + tensor(kind=4242) + bytes(256),
    "a row of t has 33 elements, Q8_0 has blocks of 32": header(tensors=1) + tensor(dims=(33,), kind=8) + bytes(256),
    "does not begin at a multiple of 32": header(tensors=1) + tensor(offset=1) + bytes(512),
    "it ends inside the tensor t": header(tensors=1) + tensor(dims=(1 << 40, 1 << 40)) + bytes(256),
    "the tensor 't' stands there twice": header(tensors=2) + tensor() + tensor(offset=128) + bytes(512),
    "the tensors t and u overlap": header(tensors=2) + tensor() + tensor(b"u", offset=96) + bytes(512),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_files_are_refused_in_one_sentence(what: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(BAD[what])
    with pytest.raises(GGUFError) as error:
        GGUFFile.open(path)
    assert what in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(GGUFError, match="not a regular file"):
        GGUFFile.open(tmp_path / "pipe")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match="cannot be read: No such file"):
        GGUFFile.open(tmp_path / "none.gguf")
    with pytest.raises(GGUFError, match="cannot be read"):
        GGUFFile.open(tmp_path)


def write_split(model: Path, folder: Path, count: int) -> list[Path]:
    """The tensors of a model dealt out over parts, as gguf-split does."""
    reader = gguf.GGUFReader(str(model))
    paths = []
    for n in range(count):
        path = folder / f"m-{n + 1:05}-of-{count:05}.gguf"
        writer = gguf.GGUFWriter(str(path), "qwen3moe")
        if n == 0:
            for name, entry in reader.fields.items():
                if name.startswith("qwen3moe."):
                    writer.add_key_value(name, entry.contents(), entry.types[0])
        writer.add_uint16("split.no", n)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for t in reader.tensors[n::count]:
            writer.add_tensor(t.name, t.data, raw_dtype=t.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        paths.append(path)
    return paths


def test_a_split_model_opens_from_any_part(model: Path, tmp_path: Path) -> None:
    whole = GGUFFile.open(model)
    paths = write_split(model, tmp_path, 3)
    for path in paths:
        file = GGUFFile.open(path)
        assert file.parts == paths
        assert set(file.tensors) == set(whole.tensors)
        for name in file.tensors:
            assert np.array_equal(file.view(name).data, whole.view(name).data)
        assert Hparams.from_metadata(file.metadata).n_expert == 8
    paths[1].unlink()
    with pytest.raises(InvalidFile, match="the part m-00002-of-00003.gguf is missing"):
        GGUFFile.open(paths[0])
    odd = tmp_path / "odd.gguf"
    paths[0].rename(odd)
    with pytest.raises(InvalidFile, match="it is one of 3 parts, but is not named"):
        GGUFFile.open(odd)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"block_count": None}, "tiny.block_count: required by architecture tiny"),
        ({"no.such.key": 1}, "tiny.no.such.key: not known to gmoe and may change the arithmetic"),
        ({"block_count": "two"}, "tiny.block_count: has the wrong type (str, not int)"),
        ({"block_count": 1.5}, "tiny.block_count: has the wrong type (float, not int)"),
        ({"block_count": True}, "tiny.block_count: has the wrong type (bool, not int)"),
        ({"rope.freq_base": float("nan")}, "tiny.rope.freq_base: nan is no number to reckon with"),
        ({"rope.freq_base": 0.0}, "tiny.rope.freq_base: 0.0 is outside 2 to 1e+20"),
        ({"attention.layer_norm_rms_epsilon": 7}, "7.0 is outside 0 to 1"),
        (
            {"attention.key_length": 1 << 63},
            "tiny.attention.key_length: 9223372036854775808 is outside 0 to 2147483647",
        ),
        ({"attention.key_length": 1 << 20}, "tiny.attention.key_length: 1048576 is outside 1 to 65536"),
        (
            {"attention.sliding_window": -(1 << 62)},
            "tiny.attention.sliding_window: -4611686018427387904 is outside 0 to",
        ),
        ({"rope.scaling.factor": 1e308}, "tiny.rope.scaling.factor: 1e+308 is outside"),
        ({"rope.scaling.yarn_beta_fast": 0.0}, "tiny.rope.scaling.yarn_beta_fast: 0.0 is outside 0.001 to"),
        ({"attention.head_count": 0}, "tiny.attention.head_count: 0 is outside 1 to"),
        ({"logit_scale": 0.0}, "tiny.logit_scale: 0.0 is outside 1e-06 to"),
        ({"interleave_moe_layer_step": 0}, "tiny.interleave_moe_layer_step: 0 is outside 1 to"),
        ({"expert_count": 4, "expert_used_count": 9}, "tiny.expert_used_count: 9 is outside 1 to 4"),
        ({"attention.head_count_kv": 3}, "must divide attention.head_count"),
        ({"expert_gating_func": 77}, "77 is not one of"),
        ({"attention.head_count": [4, 8]}, "tiny.attention.key_length: required, with attention.value_length, where"),
        ({"attention.head_count": [4, 6], "attention.head_count_kv": [2, 4]}, "must divide attention.head_count"),
        ({"attention.head_count_kv": [2, 3]}, "must divide attention.head_count"),
        ({"attention.head_count_kv": [4, 8]}, "tiny.attention.head_count_kv: 8 is outside 0 to 4"),
        ({"attention.head_count_kv": [0, 0]}, "tiny.attention.head_count_kv: 0 is outside 1 to 4"),
        ({"attention.sliding_window_pattern": [1, 2]}, "has the wrong type (int, not bool)"),
        (
            {"attention.sliding_window_pattern": True, "attention.key_length_swa": 0},
            "attention.key_length: 0 is outside",
        ),
        ({"attention.shared_kv_layers": 2}, "tiny.attention.shared_kv_layers: 2 is outside 0 to 1"),
        ({"block_count": [2, 2], "feed_forward_length": [1, 2, 3]}, "has 3 entries for 2 blocks"),
        ({"feed_forward_length": [8, 8, 8]}, "tiny.feed_forward_length: has 3 entries for 2 blocks"),
        ({"k\x1b]0;title\x07\n": 1}, r"some.gguf: tiny.k\x1b]0;title\x07: not known to gmoe"),
    ],
)
def test_hyperparameters_name_file_and_key(change: dict[str, object], what: str) -> None:
    keys: dict[str, object] = {
        "block_count": 2, "context_length": 64, "embedding_length": 32, "attention.head_count": 4,
        "feed_forward_length": 8,
    }  # fmt: skip
    metadata = {"general.architecture": "tiny"} | {f"tiny.{k}": v for k, v in (keys | change).items() if v is not None}
    with pytest.raises(UnsupportedModel) as error:
        Hparams.from_metadata(metadata, "some.gguf")
    assert what in str(error.value)
    assert "some.gguf" in str(error.value)


def test_an_architecture_is_text() -> None:
    with pytest.raises(UnsupportedModel, match="some.gguf: general.architecture: must be text"):
        Hparams.from_metadata({"general.architecture": np.arange(1000)}, "some.gguf")


def test_an_array_of_equal_entries_is_that_entry() -> None:
    keys = {"block_count": 2, "context_length": 64, "embedding_length": 32, "attention.head_count": np.array([4, 4])}
    hparams = Hparams.from_metadata({"general.architecture": "t"} | {f"t.{k}": v for k, v in keys.items()})
    assert (hparams.n_head, hparams.n_kv, hparams.n_head_k) == (4, 4, 8)


def test_a_block_has_its_own_values() -> None:
    keys = {
        "block_count": 3, "context_length": 64, "embedding_length": 32, "attention.head_count": 4,
        "attention.head_count_kv": np.array([2, 0, 1]), "attention.key_length": 16, "attention.key_length_swa": 8,
        "attention.value_length": 4, "attention.sliding_window_pattern": np.array([True, False, True]),
        "rope.freq_base": 500.0, "rope.freq_base_swa": 100.0, "rope.scaling.factor": 2.0,
    }  # fmt: skip
    whole = Hparams.from_metadata({"general.architecture": "t"} | {f"t.{k}": v for k, v in keys.items()})
    blocks = [whole.of_layer(layer) for layer in range(3)]
    assert [hp.n_kv for hp in (whole, *blocks)] == [2, 2, 0, 1]
    assert [hp.n_head_k for hp in blocks] == [8, 16, 8] and [hp.n_head_v for hp in blocks] == [4, 4, 4]
    assert [(hp.rope_freq_base, hp.rope_scaling_factor) for hp in blocks] == [(100.0, 1.0), (500.0, 2.0), (100.0, 1.0)]
    assert token_bytes(whole) == 2 * (2 * (8 + 4) + (8 + 4))


def test_heads_are_shared_evenly_in_each_block() -> None:
    keys = {
        "block_count": 2, "context_length": 64, "embedding_length": 32, "attention.head_count": np.array([4, 9]),
        "attention.head_count_kv": np.array([4, 3]), "attention.key_length": 16, "attention.value_length": 16,
    }  # fmt: skip
    whole = Hparams.from_metadata({"general.architecture": "t"} | {f"t.{k}": v for k, v in keys.items()})
    assert [(hp.n_head, hp.n_kv) for hp in map(whole.of_layer, range(2))] == [(4, 4), (9, 3)]
    with pytest.raises(UnsupportedModel, match=r"t.attention.head_count: a value that differs by layer is not"):
        whole.known_to({"attention.head_count_kv"})


def test_blocks_of_next_token_prediction_may_lack_entries() -> None:
    keys = {
        "block_count": 3, "nextn_predict_layers": 1, "context_length": 64, "embedding_length": 32,
        "attention.head_count": 4, "attention.sliding_window_pattern": np.array([0, 1]), "rope.freq_base": 500.0,
    }  # fmt: skip
    metadata = {"general.architecture": "t"} | {f"t.{k}": v for k, v in keys.items()}
    whole = Hparams.from_metadata(metadata)
    assert [whole.of_layer(layer).swa for layer in range(3)] == [False, True, True]
    assert {whole.of_layer(layer).rope_freq_base for layer in range(3)} == {500.0}
    with pytest.raises(UnsupportedModel, match="sliding_window_pattern: has 1 entries for 3 blocks"):
        Hparams.from_metadata(metadata | {"t.attention.sliding_window_pattern": [True]})


def test_split_and_fused_experts_are_those_of_the_stack(tmp_path: Path) -> None:
    stacked = GGUFFile.open(write_model(tmp_path / "a.gguf", "qwen3moe", quant="Q8_0"))
    layout = ExpertLayout(stacked, 2, 8)
    span = layout.spans(1, 3).down
    info = stacked.tensors["blk.1.ffn_down_exps.weight"]
    assert (span.offset, span.nbytes) == (info.offset + 3 * info.nbytes // 8, info.nbytes // 8)
    fused = ExpertLayout(GGUFFile.open(write_model(tmp_path / "b.gguf", "qwen3moe+fused", quant="Q8_0")), 2, 8)
    gate = fused.layers[0].gate
    assert gate is not None
    assert (gate.rows, fused.layers[0].up.rows) == (32, 32)
    assert fused.spans(0, 5).up.offset == fused.spans(0, 5).gate.offset + fused.spans(0, 5).gate.nbytes  # type: ignore[union-attr]
