"""A tensor that is missing, or shaped otherwise than the metadata says, is named before anything is computed."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gmoe.kernels.formats import QuantTensor

from gmoe.experts.dispatch import ExpertDispatch
from gmoe.experts.store import ExpertStore
from gmoe.gguf.file import GGUFFile, TensorInfo, UnsupportedModel
from gmoe.gguf.hparams import Hparams
from gmoe.gguf.layout import ExpertLayout
from gmoe.gguf.rewrite import rewrite
from gmoe.layers.weights import Weights
from gmoe.llm import LLM
from gmoe.models import decoder
from gmoe.options import RuntimeOptions
from tests.factory import ARCHITECTURES, write_model

CAN_LACK = {
    "qwen2moe": ("attn_q.bias", "attn_k.bias", "attn_v.bias"),
    "deepseek2": ("exp_probs_b.bias",),
    "deepseek32": ("exp_probs_b.bias",),
    "glm-dsa": ("exp_probs_b.bias", "indexer.k_norm.bias"),
    "glm4moe": ("attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_q_norm.weight", "attn_k_norm.weight"),
    "dots1": ("exp_probs_b.bias",),
    "bailingmoe2": ("exp_probs_b.bias",),
    "ernie4_5-moe": ("exp_probs_b.bias",),
    "exaone-moe": ("exp_probs_b.bias",),
    "mimo2": ("exp_probs_b.bias", "attn_sinks.weight"),
    "step35": (
        *("exp_probs_b.bias", "attn_gate.weight", "attn_q_norm.weight", "attn_k_norm.weight", "rope_freqs.weight"),
        *("attn_q.bias", "attn_k.bias", "attn_v.bias"),
    ),
    "hy_v3": ("exp_probs_b",),
    "kimi-k3": ("attn_gate.weight", "ffn_routed_norm.weight"),
    "hy_v4": ("exp_probs_b.bias",),
    "granitehybrid": ("ssm_conv1d.bias",),
    "nemotron_h_moe": ("ssm_conv1d.bias",),
    "gemma4": ("attn_v.weight", "ffn_down_exps.scale", "layer_output_scale.weight"),
}
# which converters wrote with more and with fewer sizes of 1
PADDED = {"kimi-linear": r"ssm_(a|conv1d_[qkv]\.weight)$", "kimi-k3": r"ssm_conv1d_[qkv]\.weight$"}

LONGER = {"per_layer_token_embd.weight"}  # which has rows behind the last that anything names


@pytest.fixture(params=ARCHITECTURES)
def file(request: pytest.FixtureRequest, tmp_path: Path) -> GGUFFile:
    path = write_model(tmp_path / f"{request.param}.gguf", request.param)
    with path.open("ab") as end:
        end.write(bytes(1 << 18))  # so that the last tensor may seem to be larger
    return GGUFFile.open(path)


def load(file: GGUFFile, hparams: Hparams | None = None) -> None:
    hparams = hparams or Hparams.from_metadata(file.metadata, str(file.path))
    layout = ExpertLayout(file, hparams.n_layer, hparams.n_expert)
    weights = Weights(file, hparams, 32, "float")
    decoder.load(weights, ExpertDispatch(ExpertStore(layout), "float"))
    weights.finish(layout.names)


def of_each_kind(file: GGUFFile) -> list[str]:
    """One tensor for each name, that of the first block which has it."""
    return list({re.sub(r"blk\.\d+\.", "", name): name for name in reversed(file.tensors)}.values())


def others(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    for axis, n in enumerate(shape):
        yield (*shape[:axis], 2 * n, *shape[axis + 1 :])
        if n > 1:
            yield (*shape[:axis], n // 2, *shape[axis + 1 :])
    if len(shape) > 1:
        yield (2, *shape)
        if 1 not in shape:  # else it is the same row of numbers
            yield (elements(shape),)
        yield (1, *shape)


def elements(shape: tuple[int, ...]) -> int:
    return shape[0] * elements(shape[1:]) if shape else 1


def test_a_tensor_of_another_shape_is_refused(file: GGUFFile) -> None:
    hparams = Hparams.from_metadata(file.metadata, str(file.path))
    load(file, hparams)
    for name in of_each_kind(file):
        info = file.tensors[name]
        padded = re.search(PADDED.get(file.architecture, "$^"), name)
        for shape in others(info.shape):
            if padded and shape == (1, *info.shape):
                continue
            if name in LONGER and shape == (2 * info.shape[0], *info.shape[1:]):
                continue
            file.tensors[name] = replace(info, shape=shape, nbytes=4 * elements(shape))
            with pytest.raises(UnsupportedModel, match=rf"{re.escape(str(file.path))}: [^ ]+: ") as error:
                load(file, hparams)
            assert "\n" not in str(error.value)
        file.tensors[name] = info


def test_a_row_of_numbers_may_have_a_one_in_front(file: GGUFFile) -> None:
    for name, info in file.tensors.items():
        if len(info.shape) == 1:
            file.tensors[name] = replace(info, shape=(1, *info.shape))
    load(file)


def test_sizes_of_one_in_front_of_padded_tensors(tmp_path: Path) -> None:
    with GGUFFile.open(write_model(tmp_path / "m.gguf", "kimi-linear")) as file:
        padded = [name for name in file.tensors if re.search(PADDED["kimi-linear"], name)]
        assert {name.split(".")[2] for name in padded} == {"ssm_a", "ssm_conv1d_q", "ssm_conv1d_k", "ssm_conv1d_v"}
        for name in padded:
            info = file.tensors[name]
            file.tensors[name] = replace(info, shape=(1, *info.shape)[-4:])
        load(file)


def test_a_tensor_that_is_missing_is_refused(file: GGUFFile) -> None:
    lacking = []
    for name in of_each_kind(file):
        info = file.tensors.pop(name)
        try:
            load(file)
        except UnsupportedModel as error:
            assert str(file.path) in str(error)
        else:
            lacking.append(re.sub(r"blk\.\d+\.", "", name))
        file.tensors[name] = info
    assert set(lacking) <= {"output.weight", *CAN_LACK.get(file.architecture, ())}


def test_embeddings_without_a_token_are_refused(tmp_path: Path) -> None:
    def twice(info: TensorInfo, tensor: QuantTensor) -> Iterator[tuple[str, QuantTensor]]:
        if info.name in ("token_embd.weight", "output.weight"):
            data = np.concatenate([tensor.data, tensor.data])
            tensor = QuantTensor(data, tensor.format, (len(data), *tensor.shape[1:]))
        yield info.name, tensor

    path = tmp_path / "wide.gguf"
    with GGUFFile.open(write_model(tmp_path / "m.gguf")) as file:
        rewrite(file, path, twice)
    with pytest.raises(UnsupportedModel, match="wide.gguf: tokenizer.ggml.tokens: 272 tokens for 544 embeddings"):
        LLM.load(path, RuntimeOptions(device="cpu"))
