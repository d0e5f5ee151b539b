"""The trained model as a GGUF of architecture qwen3moe, in F16 or a quant type."""

import json
import tempfile
from pathlib import Path

import gguf
import numpy as np
import torch
from gmoe.kernels.ops import dequantize
from tokenizers import Tokenizer
from torch import Tensor

from gmoe.gguf.file import GGUFFile
from gmoe.passes.mixes import file_type, mix_named
from gmoe.passes.quantize import quantize
from tools.demo.corpus import END_OF_TEXT, SPECIAL, TURN_END
from tools.demo.model import Model, Shape

PLAIN = {"F32": np.float32, "F16": np.float16}
READ = {
    "context_length": "n_ctx",
    "embedding_length": "n_embd",
    "block_count": "n_layer",
    "attention.head_count": "n_head",
    "attention.head_count_kv": "n_head_kv",
    "attention.key_length": "head_dim",
    "expert_count": "n_expert",
    "expert_used_count": "n_expert_used",
    "expert_feed_forward_length": "n_ff_exp",
    "rope.freq_base": "rope_freq_base",
    "attention.layer_norm_rms_epsilon": "rms_eps",
}
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_hparams(writer: gguf.GGUFWriter, shape: Shape) -> None:
    """The qwen3moe.* keys."""
    writer.add_context_length(shape.n_ctx)
    writer.add_embedding_length(shape.n_embd)
    writer.add_block_count(shape.n_layer)
    writer.add_feed_forward_length(shape.n_ff_exp)
    writer.add_expert_feed_forward_length(shape.n_ff_exp)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(shape.rms_eps)
    writer.add_rope_freq_base(shape.rope_freq_base)
    writer.add_expert_count(shape.n_expert)
    writer.add_expert_used_count(shape.n_expert_used)
    writer.add_vocab_size(shape.n_vocab)


def write_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    """The tokenizer.* keys: byte-level BPE, pre-tokenizer qwen2, ChatML."""
    tokens = [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if t in SPECIAL else gguf.TokenType.NORMAL for t in tokens])
    writer.add_token_merges([" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]])
    writer.add_eos_token_id(tokenizer.token_to_id(TURN_END))
    writer.add_bos_token_id(tokenizer.token_to_id(END_OF_TEXT))
    writer.add_pad_token_id(tokenizer.token_to_id(END_OF_TEXT))
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def export(weights: dict[str, Tensor], shape: Shape, tokenizer: Tokenizer, path: Path, type_name: str = "F16") -> None:
    """Write the state dict of a `Model` as a GGUF in F32, F16 or another mix of `gmoe quantize`.

    Raises ValueError for a type that cannot be written.
    """
    mix = mix_named(type_name)
    if mix not in PLAIN:
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            export(weights, shape, tokenizer, Path(folder) / "plain.gguf", "F32")
            quantize(Path(folder) / "plain.gguf", path, mix)
        return
    writer = gguf.GGUFWriter(path, "qwen3moe")
    writer.add_name("gmoe demo")
    writer.add_license("MIT; trained on the texts named in the model card")
    writer.add_file_type(file_type(mix))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    write_hparams(writer, shape)
    write_tokenizer(writer, tokenizer)
    for name, weight in weights.items():
        values = weight.detach().to("cpu", torch.float32).numpy()
        small = values.ndim == 1 or "ffn_gate_inp" in name  # norms and routers stay F32, as llama.cpp does it
        writer.add_tensor(name, np.ascontiguousarray(values, np.float32 if small else PLAIN[mix]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_model(path: Path) -> Model:
    """The `Model` of a GGUF of any type, decoded to float32."""
    with GGUFFile.open(path) as file:
        keys = {f"qwen3moe.{key}": name for key, name in READ.items()}
        numbers = {name: file.metadata[key] for key, name in keys.items()}
        shape = Shape(n_vocab=file.tensors["token_embd.weight"].shape[0], **numbers)
        model = Model(shape)
        model.load_state_dict({name: dequantize(file.view(name)) for name in file.tensors})
    return model
