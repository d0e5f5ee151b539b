"""Weights: the hyperparameters plus a scope over the tensors of a GGUF file."""

from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor

from gmoe.gguf.file import GGUFFile, UnsupportedModel
from gmoe.gguf.hparams import Hparams
from gmoe.kernels.formats import QuantTensor
from gmoe.kernels.ops import Activations, DeviceKernels, dequantize
from gmoe.kernels.reference import as_tensor
from gmoe.layers.linear import QuantEmbedding, QuantLinear
from gmoe.layers.norm import HeadNorm, RMSNorm

T = TypeVar("T")
CPU = torch.device("cpu")


class Weights:
    """Tensors by their GGUF name without prefix and `.weight`; a missing one is an error naming file and tensor.

    On the CPU they are views of the file; on another `device` each is copied there when it is first asked for, and `on`
    has the kernels that read it.
    """

    def __init__(
        self,
        file: GGUFFile,
        hparams: Hparams,
        n_ctx: int,
        activations: Activations,
        prefix: str = "",
        layer: int = -1,
        device: torch.device = CPU,
        on: DeviceKernels | None = None,
    ):
        self.file = file
        self.hparams = hparams
        self.n_ctx = n_ctx
        self.activations = activations
        self.prefix = prefix
        self.layer = layer
        self.device, self.on = device, on
        self.used: set[str] = set()
        self._shared: dict[Any, Any] = {}

    def block(self, layer: int) -> "Weights":
        """The scope of `blk.<layer>.`, with the hyperparameters that hold there."""
        return self._scope(self.hparams.of_layer(layer), f"blk.{layer}.", layer)

    def window(self) -> "Weights":
        """The same scope with the hyperparameters that hold in a window."""
        return self._scope(self.hparams.of_window(), self.prefix, self.layer)

    def compressed(self) -> "Weights":
        """The same scope with the hyperparameters that hold where rows are compressed."""
        return self._scope(self.hparams.of_compressed(), self.prefix, self.layer)

    def _scope(self, hparams: Hparams, prefix: str, layer: int) -> "Weights":
        given = self.file, hparams, self.n_ctx, self.activations
        scope = Weights(*given, prefix, layer, self.device, self.on)
        scope.used, scope._shared = self.used, self._shared
        return scope

    def shared(self, key: Any, build: Callable[[], T]) -> T:
        """What all blocks have in common, built once a model."""
        if key not in self._shared:
            self._shared[key] = build()
        value: T = self._shared[key]
        return value

    def has(self, name: str) -> bool:
        """Whether the file has this tensor here."""
        return self.prefix + name + ".weight" in self.file.tensors

    def need(self, *names: str) -> None:
        """Refuse a file without these tensors, such as `attn_q_norm.weight`, which other architectures can lack."""
        missing = next((name for name in names if self.prefix + name not in self.file.tensors), None)
        if missing is not None:
            self._refuse_without(self.prefix + missing)

    def skip(self, *names: str) -> None:
        """Let the file have these, such as `attn_k.weight`, though nobody reads them."""
        self.used.update(self.prefix + name for name in names)

    def quant(self, name: str, suffix: str = ".weight", shape: tuple[int, ...] | None = None) -> QuantTensor:
        """A tensor as it is in the file, where the model runs; one of another `shape` is refused."""
        tensor = self.stored(name, suffix, shape)
        if self.device.type == "cpu":
            return tensor

        def copy() -> QuantTensor:
            return QuantTensor(as_tensor(tensor.data).to(self.device), tensor.format, tensor.shape)

        return self.shared(("tensor", self.prefix + name + suffix), copy)

    def stored(self, name: str, suffix: str = ".weight", shape: tuple[int, ...] | None = None) -> QuantTensor:
        """The same in the host's memory, wherever the model runs."""
        tensor = self._view(name, suffix)
        if shape is not None and len(shape) == 1 and tensor.shape in ((1, *shape), (*shape, 1)):  # all the same to GGUF
            tensor = QuantTensor(tensor.data.reshape(-1), tensor.format, shape)
        if shape is not None and tensor.shape != shape:
            have, want = list(tensor.shape), list(shape)
            self.refuse(self.prefix + name + suffix, f"has the shape {have}, the rest of the file asks for {want}")
        return tensor

    def _view(self, name: str, suffix: str = ".weight") -> QuantTensor:
        full = self.prefix + name + suffix
        if full not in self.file.tensors:
            self._refuse_without(full)
        self.used.add(full)
        return self.file.view(full)

    def get(self, name: str, suffix: str = ".weight", n: int | None = None) -> Tensor | None:
        """A small tensor as float32, of `n` numbers if given, or None where the file has none."""
        if self.prefix + name + suffix not in self.file.tensors:
            return None
        return dequantize(self.quant(name, suffix, None if n is None else (n,)), on=self.on)

    def vector(self, name: str, n: int, suffix: str = ".weight") -> Tensor:
        """A tensor of `n` numbers as float32, which the file must have."""
        return dequantize(self.quant(name, suffix, (n,)), on=self.on)

    def shaped(self, name: str, shape: tuple[int, ...], suffix: str = ".weight") -> Tensor:
        """A tensor of this shape as float32, which the file must have, perhaps with more sizes of 1, four in all."""
        tensor = self.quant(name, suffix)
        if len(tensor.shape) > 4 or [n for n in tensor.shape if n != 1] != [n for n in shape if n != 1]:
            have, want = list(tensor.shape), list(shape)
            self.refuse(self.prefix + name + suffix, f"has the shape {have}, the rest of the file asks for {want}")
        return dequantize(tensor, on=self.on).view(shape)

    def linear(self, name: str, n_in: int, n_out: int | None = None) -> QuantLinear:
        """The map `name`, with its scale and its bias where the file has them."""
        weight, scale = self.matrix(name, n_in, n_out), self.get(name, ".scale", 1)
        self.skip(name + ".input_scale")  # of kernels that round activations to NVFP4
        bias = self.get(name, ".bias", weight.shape[0])
        return QuantLinear(weight, bias, self.activations, self.on, 1.0 if scale is None else float(scale))

    def matrix(self, name: str, n_in: int, n_out: int | None = None) -> QuantTensor:
        """The weight of the map `name`, [n_out, n_in]; a file may leave out an n_out of 1."""
        weight = self.quant(name)
        if len(weight.shape) == 1:
            weight = QuantTensor(weight.data.reshape(1, -1), weight.format, (1, *weight.shape))
        full = self.prefix + name + ".weight"
        if len(weight.shape) != 2:
            self.refuse(full, f"has the shape {list(weight.shape)}, which is no matrix")
        for what, want, have in (("inputs", n_in, weight.shape[1]), ("outputs", n_out, weight.shape[0])):
            if want is not None and want != have:
                self.refuse(full, f"has {have} {what}, the rest of the file asks for {want}")
        return weight

    def norm(self, *names: str, n: int | None = None) -> RMSNorm:
        """The first of these norms that the file has, of `n` numbers, the model's width if not given."""
        name = next((name for name in names if self.has(name)), names[0])
        n = self.hparams.n_embd if n is None else n
        return RMSNorm(self.vector(name, n), self.eps, self.get(name, ".bias", n), self.on)

    @property
    def eps(self) -> float:
        """What norms add to a mean square."""
        eps = self.hparams.rms_eps if self.hparams.rms_eps is not None else self.hparams.norm_eps
        if eps is None:
            self.refuse(f"{self.hparams.architecture}.attention.layer_norm_rms_epsilon", "required by its norms")
        return eps

    def head_norm(self, name: str, n: int) -> HeadNorm | None:
        """A norm of queries or keys, of `n` numbers, where the file has it."""
        return HeadNorm(self.norm(name, n=n)) if self.has(name) else None

    def embedding(self, name: str, scale: float = 1.0, n: int | None = None) -> QuantEmbedding:
        """The table `name` of rows of `n` numbers, the model's width if not given, times `scale`.

        It stays in the file: a token reads one row, or some.
        """
        table, n_embd = self._view(name), self.hparams.n_embd if n is None else n
        if len(table.shape) != 2 or table.shape[1] != n_embd:
            self.refuse(name + ".weight", f"has the shape {list(table.shape)}, the metadata asks for rows of {n_embd}")
        if name + ".scale" in self.file.tensors:
            self.refuse(name + ".scale", "scales are supported beside maps and experts, not beside embeddings")
        return QuantEmbedding(table, self.device, self.on, scale)

    def _refuse_without(self, full: str) -> NoReturn:
        self.refuse(full, f"this tensor is required by architecture {self.hparams.architecture}")

    def refuse(self, key: str, why: str) -> NoReturn:
        """Raise `UnsupportedModel` naming this file, the metadata key or tensor, and why."""
        raise UnsupportedModel(str(self.file.path), key, why)

    def finish(self, also: set[str]) -> None:
        """Refuse a file with tensors that nobody read: they would change the arithmetic."""
        skipped = tuple(f"blk.{n}." for n in range(self.hparams.n_layer, self.hparams.n_block))
        for name in self.file.tensors:
            if name not in self.used and name not in also and not (skipped and name.startswith(skipped)):
                raise UnsupportedModel(
                    str(self.file.path),
                    name,
                    f"architecture {self.hparams.architecture} of gmoe does not use this tensor",
                )
