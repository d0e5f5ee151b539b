"""A model file whose maps and experts have scales beside them, as converted NVFP4 models do."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from gmoe.kernels.formats import FORMATS, QuantTensor

from gmoe.gguf.file import GGUFFile, TensorInfo
from gmoe.gguf.rewrite import rewrite

MAPS = re.compile(
    r"output|blk\.\d+\.(attn_(q|k|v|qkv|output|gate)|ssm_(in|out|alpha|beta)|ffn_(gate|up|down)(_shexp|_exps)?)"
)
F32, NVFP4 = FORMATS["F32"], FORMATS["NVFP4"]
SCALES = np.array([(m if e == 0 else 2.0 ** (e - 1) * (8 + m)) * 2.0**-10 for e in range(16) for m in range(8)])[:127]


def scaled(
    source: Path, path: Path, rng: np.random.Generator, whole: bool = True, packed: bool = False, output: bool = True
) -> Path:
    """The same model of F32 with other weights in `path`, which their scales make the old ones again.

    Scales are powers of two if `whole`, so that not a bit is lost. The weights are NVFP4 where that can be if `packed`,
    and the same only nearly. Without `output` that has none. Nobody reads the `.input_scale` beside them.
    """

    def edit(info: TensorInfo, tensor: QuantTensor) -> Iterator[tuple[str, QuantTensor]]:
        name = info.name.removesuffix(".weight")
        if not MAPS.fullmatch(name) or name + ".scale" in file.tensors or (name == "output" and not output):
            yield info.name, tensor
            return
        n = tensor.shape[0] if len(tensor.shape) == 3 else 1
        scale = np.exp2(rng.integers(-3, 4, n) if whole else rng.uniform(-3, 4, n)).astype(np.float32)
        values = np.asarray(tensor.data).view(np.float32).reshape(n, -1) / scale[:, None]
        if packed and tensor.shape[-1] % NVFP4.block_size == 0:
            data = nvfp4(values).reshape(*tensor.shape[:-1], -1)
            yield info.name, QuantTensor(data, NVFP4, tensor.shape)
        else:
            yield info.name, QuantTensor(values.reshape(tensor.shape).view(np.uint8), F32, tensor.shape)
        for what, vector in ((".scale", scale), (".input_scale", np.full(n, 7.0, np.float32))):
            yield name + what, QuantTensor(vector.view(np.uint8), F32, (n,))

    with GGUFFile.open(source) as file:
        rewrite(file, path, edit)
    return path


def nvfp4(values: np.ndarray) -> np.ndarray:
    """Blocks uint8 [n, 36] of values in order, each the nearest that its group's largest leaves."""
    x = values.reshape(-1, 16)
    byte = np.abs(SCALES - np.abs(x).max(-1, keepdims=True) / 12).argmin(-1)
    steps = x / np.maximum(SCALES[byte], SCALES[1])[:, None]
    code = np.abs(steps[..., None] - np.array(NVFP4.codebook)).argmin(-1).astype(np.uint8)
    packed = code[:, :8] | code[:, 8:] << 4
    return np.concatenate([byte.astype(np.uint8).reshape(-1, 4), packed.reshape(-1, 32)], -1)
