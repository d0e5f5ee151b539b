"""ggml's matrix products through ctypes, of weights as they lie or repacked: what bench_kernels times ours beside."""

import ctypes
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gmoe.kernels.formats import QuantFormat

POINTER, INTEGER = ctypes.c_void_p, ctypes.c_int64
BASE = {  # functions of libggml-base.so that give a pointer or nothing, and their arguments
    "ggml_new_tensor_2d": [POINTER, ctypes.c_int, INTEGER, INTEGER],
    "ggml_mul_mat": [POINTER, POINTER, POINTER],
    "ggml_new_graph": [POINTER],
    "ggml_get_data": [POINTER],
    "ggml_build_forward_expand": [POINTER, POINTER],
    "ggml_free": [POINTER],
    "ggml_backend_reg_dev_get": [POINTER, ctypes.c_size_t],
    "ggml_backend_reg_get_proc_address": [POINTER, ctypes.c_char_p],
    "ggml_backend_buft_alloc_buffer": [POINTER, ctypes.c_size_t],
    "ggml_backend_buffer_get_base": [POINTER],
    "ggml_backend_buffer_free": [POINTER],
    "ggml_backend_tensor_alloc": [POINTER, POINTER, POINTER],
    "ggml_backend_tensor_set": [POINTER, POINTER, ctypes.c_size_t, ctypes.c_size_t],
}
SILENT = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, POINTER)(lambda level, text, data: None)  # of the log
ROOM = 64 << 20  # bytes for what ggml notes beside the numbers, and for its work in every call


class Parameters(ctypes.Structure):
    """ggml's `ggml_init_params`."""

    _fields_ = [("size", ctypes.c_size_t), ("buffer", POINTER), ("no_alloc", ctypes.c_bool)]


class Ggml:
    """The libraries of one folder, as of llama-cpp-python's `lib`."""

    def __init__(self, folder: Path):
        self.base = ctypes.CDLL(str(folder / "libggml-base.so"), mode=ctypes.RTLD_GLOBAL)
        self.cpu = ctypes.CDLL(str(folder / "libggml-cpu.so"), mode=ctypes.RTLD_GLOBAL)
        for name, arguments in BASE.items():
            function = getattr(self.base, name)
            function.argtypes, function.restype = arguments, POINTER
        self.base.ggml_init.argtypes, self.base.ggml_init.restype = [Parameters], POINTER
        self.base.ggml_backend_buft_name.argtypes = [POINTER]
        self.base.ggml_backend_buft_name.restype = ctypes.c_char_p
        self.base.ggml_backend_dev_supports_op.argtypes = [POINTER, POINTER]
        self.base.ggml_backend_dev_supports_op.restype = ctypes.c_bool
        self.base.ggml_log_set(SILENT, None)
        self.cpu.ggml_graph_compute_with_ctx.argtypes = [POINTER, POINTER, ctypes.c_int]
        self.cpu.ggml_backend_cpu_reg.restype = POINTER
        registry = self.cpu.ggml_backend_cpu_reg()
        self.device = self.base.ggml_backend_reg_dev_get(registry, 0)
        self.repacking = self._repacking(registry)

    def _repacking(self, registry: int) -> int | None:
        """The type of buffers whose matrices are repacked; None where this ggml has none."""
        get = self.base.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
        if not get:
            return None
        types = ctypes.CFUNCTYPE(ctypes.POINTER(POINTER), POINTER)(get)(self.device)
        n = 0
        while types and types[n]:
            if self.base.ggml_backend_buft_name(types[n]) == b"CPU_REPACK":
                return types[n]
            n += 1
        return None

    def products(self, form: QuantFormat, arena: np.ndarray, x: np.ndarray, repeats: int = 1) -> "Products":
        """Of `arena` uint8 [matrices, rows, bytes of a row], copied, with `x` float32 [T, columns]; a call of
        `compute` does that of the next matrix `repeats` times."""
        return Products(self, int(gguf.GGMLQuantizationType[form.name]), arena, x, repeats, None)

    def repacked(self, form: QuantFormat, arena: np.ndarray, x: np.ndarray, repeats: int = 1) -> "Products | None":
        """The same with the weights repacked; None where this ggml on this CPU does not repack such matrices."""
        if self.repacking is None:
            return None
        products = Products(self, int(gguf.GGMLQuantizationType[form.name]), arena, x, repeats, self.repacking)
        if products.supported:
            return products
        products.close()
        return None


class Products:
    """Graphs in one context, one a matrix, in memory of ggml's."""

    def __init__(self, ggml: Ggml, kind: int, arena: np.ndarray, x: np.ndarray, repeats: int, buffers: int | None):
        base, (count, rows, _), (tokens, cols) = ggml.base, arena.shape, x.shape
        self.ggml, self.turn, self.supported = ggml, 0, True
        self.graphs: list[Any] = []
        self.results: list[Any] = []  # a float32 tensor [T, rows] a matrix, the last of its repeats
        self.context = base.ggml_init(Parameters(count * repeats * rows * tokens * 4 + x.nbytes + ROOM, None, False))
        self.weights = base.ggml_init(Parameters(ROOM + (0 if buffers else arena.nbytes), None, bool(buffers)))
        self.buffers: list[Any] = []
        inputs = base.ggml_new_tensor_2d(self.context, 0, cols, tokens)
        ctypes.memmove(base.ggml_get_data(inputs), x.ctypes.data, x.nbytes)
        for data in arena:
            w = base.ggml_new_tensor_2d(self.weights, kind, cols, rows)
            if buffers:
                self.buffers.append(base.ggml_backend_buft_alloc_buffer(buffers, data.nbytes + 4096))
                base.ggml_backend_tensor_alloc(self.buffers[-1], w, base.ggml_backend_buffer_get_base(self.buffers[-1]))
            graph = base.ggml_new_graph(self.context)
            for _ in range(repeats):
                result = base.ggml_mul_mat(self.context, w, inputs)
                base.ggml_build_forward_expand(graph, result)
            if buffers and not base.ggml_backend_dev_supports_op(ggml.device, result):
                self.supported = False
                return
            if buffers:
                base.ggml_backend_tensor_set(w, data.ctypes.data, 0, data.nbytes)
            else:
                ctypes.memmove(base.ggml_get_data(w), data.ctypes.data, data.nbytes)
            self.graphs.append(graph)
            self.results.append(result)

    def compute(self, threads: int) -> None:
        """The next matrix's product."""
        self.turn += 1
        self.ggml.cpu.ggml_graph_compute_with_ctx(self.context, self.graphs[self.turn % len(self.graphs)], threads)

    def close(self) -> None:
        """Give the memory back."""
        for buffer in self.buffers:
            self.ggml.base.ggml_backend_buffer_free(buffer)
        self.ggml.base.ggml_free(self.weights)
        self.ggml.base.ggml_free(self.context)
