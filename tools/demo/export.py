"""The trained model as a GGUF of architecture qwen3moe, in F16 or a quant type."""

import json
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, LlamaFileType
from tokenizers import Tokenizer
from torch import Tensor

from tools.demo.corpus import END_OF_TEXT, SPECIAL, TURN_END
from tools.demo.model import Shape

WRITABLE = ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
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


def tensor_type(name: str, shape: tuple[int, ...], wanted: GGMLQuantizationType) -> GGMLQuantizationType:
    """Norms and routers stay F32, as llama.cpp does it; below 8 bits the embedding, which is also the head, is Q8_0."""
    if len(shape) == 1 or "ffn_gate_inp" in name:
        return GGMLQuantizationType.F32
    if name.startswith("token_embd") and gguf.GGML_QUANT_SIZES[wanted][0] > 1:
        return GGMLQuantizationType.Q8_0
    return wanted


def file_type(type_name: str) -> int:
    """general.file_type for matrices of this type. Raises ValueError where gguf cannot quantize to it."""
    if type_name not in WRITABLE:
        raise ValueError(f"gguf cannot quantize to {type_name}; supported are {', '.join(WRITABLE)}")
    return int(LlamaFileType["ALL_F32" if type_name == "F32" else f"MOSTLY_{type_name}"])


def export(weights: dict[str, Tensor], shape: Shape, tokenizer: Tokenizer, path: Path, type_name: str = "F16") -> None:
    """Write the state dict of a `Model` as a GGUF; `type_name` is F32, F16 or a type that gguf can quantize to.

    Raises ValueError for a type that gguf cannot quantize to.
    """
    wanted = GGMLQuantizationType[type_name]
    writer = gguf.GGUFWriter(path, "qwen3moe")
    writer.add_name("gmoe demo")
    writer.add_license("MIT; trained on the texts named in the model card")
    writer.add_file_type(file_type(type_name))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    write_hparams(writer, shape)
    write_tokenizer(writer, tokenizer)
    for name, weight in weights.items():
        values = weight.detach().to("cpu", torch.float32).numpy()
        kind = tensor_type(name, values.shape, wanted)
        data = gguf.quantize(np.ascontiguousarray(values), kind)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
