"""GGUF files of tiny models for tests, written by the gguf package the way llama.cpp's conversion writes them."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from engine.config import ModelConfig

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate": "ffn_gate_inp",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def theirs(name: str) -> str:
    """Our name of a weight to GGUF's."""
    stem, _, kind = name.rpartition(".")
    if stem in NAMES:
        return f"{NAMES[stem]}.{kind}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{NAMES[part]}.{kind}"


def permuted(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """llama.cpp's convert_hf_to_gguf: the rows of a head from halves to neighbouring pairs."""
    rows, inputs = weight.shape
    return weight.reshape(n_heads, 2, rows // n_heads // 2, inputs).swapaxes(1, 2).reshape(rows, inputs)


def write_gguf(
    path: Path,
    config: ModelConfig,
    weights: dict[str, torch.Tensor],
    *,
    architecture: str = "llama",
    kind: str = "F32",
    metadata: dict[str, Any] | None = None,
    renames: dict[str, str] | None = None,
) -> Path:
    """A GGUF file of a Llama-like model; matrices in the format ``kind``, vectors in float32."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.n_layers)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    for key, value in (metadata or {}).items():
        _add(writer, key, value)
    for name, tensor in weights.items():
        values = tensor.float().numpy()
        if architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            values = permuted(values, config.n_heads if "q_proj" in name else config.n_kv_heads)
        _write(writer, (renames or {}).get(name) or theirs(name), values, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: Any, key: str, value: Any) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case list():
            writer.add_array(key, value)


def _write(writer: Any, name: str, values: np.ndarray, kind: str) -> None:
    wanted = gguf.GGMLQuantizationType[kind]
    if values.ndim < 2 or kind == "F32":
        writer.add_tensor(name, np.ascontiguousarray(values, dtype=np.float32))
    elif kind == "F16":
        writer.add_tensor(name, values.astype(np.float16))
    else:
        writer.add_tensor(name, gguf.quants.quantize(np.ascontiguousarray(values), wanted), raw_dtype=wanted)
