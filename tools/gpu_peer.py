"""llama.cpp on a card, in a process of its own: `-ngl`, and the experts of the first layers left on the CPU (`-ncmoe`).

    python -m tools.gpu_peer model.gguf --layers-on-card 99 --experts-on-cpu 12 --prompt 2048 --depth 64 --generate 32

Prints one line of JSON: tokens a second of the prompt and of decoding, and seconds to load.
"""

import argparse
import ctypes
import json
import random
import time
from pathlib import Path
from typing import Any

from tools.compare_llamacpp import LlamaCpp

EXPERTS = r"blk\.{}\.ffn_(up|down|gate|gate_up)_(ch|)exps"  # as llama.cpp's own option names them


class Override(ctypes.Structure):
    """llama.cpp's `llama_model_tensor_buft_override`."""

    _fields_ = [("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p)]


def host_buffers() -> int:
    """ggml's buffer type of plain host memory."""
    import llama_cpp

    library = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
    library.ggml_backend_cpu_buffer_type.restype = ctypes.c_void_p
    return int(library.ggml_backend_cpu_buffer_type())


def overrides(layers: int) -> Any:
    """The experts of the first `layers` blocks stay in host memory; ends with an empty row."""
    rows = [Override(EXPERTS.format(n).encode(), host_buffers()) for n in range(layers)]
    return (Override * (layers + 1))(*rows, Override(None, None))


def measure(
    path: Path, on_card: int, experts_on_cpu: int, prompt: int, depth: int, generate: int, threads: int, vocabulary: int
) -> dict[str, float]:
    """Tokens a second, the better of two times each."""
    kept = overrides(experts_on_cpu)

    def change(params: Any) -> None:
        params.n_gpu_layers = on_card
        if experts_on_cpu:
            params.tensor_buft_overrides = ctypes.cast(kept, ctypes.c_void_p)

    began = time.perf_counter()
    side = LlamaCpp(path, threads, max(prompt, depth + generate) + 1, True, change)
    loaded = time.perf_counter() - began
    draw = random.Random(7)
    ids = [draw.randrange(vocabulary) for _ in range(max(prompt, depth + generate))]
    decode = min(side.seconds(ids[: depth + generate], depth, True) for _ in range(2))
    reading = min(side.seconds(ids[:prompt], 0, False) for _ in range(2))
    return {"decode": generate / decode, "prefill": prompt / reading, "load": loaded}


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--layers-on-card", type=int, default=99)
    parser.add_argument("--experts-on-cpu", type=int, default=0, metavar="LAYERS")
    for name, value in (("prompt", 2048), ("depth", 64), ("generate", 32), ("threads", 8), ("vocabulary", 30000)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args(arguments)
    sizes = given.prompt, given.depth, given.generate, given.threads, given.vocabulary
    print(json.dumps(measure(given.model, given.layers_on_card, given.experts_on_cpu, *sizes)), flush=True)


if __name__ == "__main__":
    main()
