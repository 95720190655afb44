"""GGUF's words for a model put into Hugging Face's: metadata as a config.json, tensors by our names.

llama.cpp's conversion is undone where it changed values: queries and keys of its llama family have their rows
reordered for neighbouring pairs; Gemma's norms have 1 added already.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from engine.errors import CheckpointError, UnsupportedArchitecture
from engine.families.configs import config_from_hf
from engine.families.keys import Keys
from engine.families.names import deepseek_order, half_split
from engine.model.config import LongRopeScaling, ModelConfig
from engine.weights.gguf import GGUFFile, GGUFTensor
from engine.weights.lazy import StoredTensor

MODEL_TYPES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3moe": "qwen3_moe",
    "smollm3": "smollm3",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "gpt2": "gpt2",
    "phi3": "phi3",
    "deepseek2": "deepseek_v2",
    "gpt-oss": "gpt_oss",
}
_PERMUTED = ("llama", "smollm3")  # architectures whose q and k rows the conversion reorders
_GEMMA = ("gemma2", "gemma3")
_LARGEST_GEMMA = {"gemma2": 46, "gemma3": 62}  # layers of the 27B models, which scale by hidden size / heads


def config_from_gguf(file: GGUFFile) -> ModelConfig:
    """The config that a file's metadata and tensor shapes describe. Raises ConfigError, UnsupportedArchitecture."""
    architecture = file.architecture
    if architecture not in MODEL_TYPES:
        raise UnsupportedArchitecture(
            f'{file.path} has architecture "{architecture}", which the engine cannot run from GGUF; '
            f"it runs {', '.join(MODEL_TYPES)}"
        )
    said = _document(file, architecture)
    # What a file does not state takes its default; only queries that are not compressed are told by saying nothing.
    document = {key: value for key, value in said.items() if value is not None or key == "q_lora_rank"}
    config = config_from_hf(document)
    if architecture in _GEMMA:
        config = replace(config, norm_offset=0.0)
    factors = file.tensors.get("rope_freqs.weight")
    if factors is not None:  # Llama 3.1's stretch, worked out for every pair by the conversion
        stretch = tuple(factors.stored().load().double().tolist())
        if len(stretch) != config.head_dim // 2:
            raise CheckpointError(f"{file.path}: rope_freqs has {len(stretch)} entries, not {config.head_dim // 2}")
        scaling = LongRopeScaling(
            short_factors=stretch, long_factors=stretch, original_max_positions=config.max_positions
        )
        config = replace(config, rope_scaling=scaling)
    ids = [_id(file, key) for key in ("eot", "eom")]
    return replace(config, eos_ids=tuple(dict.fromkeys([*config.eos_ids, *(i for i in ids if i is not None)])))


def _id(file: GGUFFile, name: str) -> int | None:
    value = file.metadata.get(f"tokenizer.ggml.{name}_token_id")
    return value if isinstance(value, int) else None


def _document(file: GGUFFile, architecture: str) -> dict[str, Any]:
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError(f"{file.path} has no matrix token_embd.weight, which gives the vocabulary")
    document = {
        "model_type": MODEL_TYPES[architecture],
        "num_hidden_layers": file.get("block_count"),
        "hidden_size": file.get("embedding_length"),
        "intermediate_size": file.get("feed_forward_length"),
        "num_attention_heads": file.get("attention.head_count"),
        "num_key_value_heads": file.get("attention.head_count_kv") or file.get("attention.head_count"),
        "head_dim": file.get("attention.key_length") or _width(file),
        "max_position_embeddings": file.get("context_length"),
        "vocab_size": embedding.shape[0],
        "rms_norm_eps": file.get("attention.layer_norm_rms_epsilon"),
        "rope_theta": file.get("rope.freq_base") or 10_000.0,
        "rope_scaling": _scaling(file),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
        "eos_token_id": _id(file, "eos"),
        "bos_token_id": _id(file, "bos"),
    }
    own = _OWN.get(architecture)
    return document | (own(file) if own is not None else {})


def _width(file: GGUFFile) -> int | None:
    width, heads = file.get("embedding_length"), file.get("attention.head_count")
    return width // heads if isinstance(width, int) and isinstance(heads, int) and heads else None


def _scaling(file: GGUFFile) -> dict[str, Any] | None:
    kind = file.get("rope.scaling.type")
    if kind is None or kind == "none":
        return None
    weight = 10 * (file.get("rope.scaling.yarn_log_multiplier") or 0.0)  # the conversion stores a tenth of it
    return {
        "rope_type": kind,
        "factor": file.get("rope.scaling.factor"),
        "original_max_position_embeddings": file.get("rope.scaling.original_context_length"),
        "mscale": weight,
        "mscale_all_dim": weight,
    }


# --- what architectures have of their own -----------------------------------------------------------------


def _llama(file: GGUFFile) -> dict[str, Any]:
    n_experts = file.get("expert_count")
    if not n_experts:
        return {}
    return {
        "model_type": "mixtral",
        "num_local_experts": n_experts,
        "num_experts_per_tok": file.get("expert_used_count"),
    }


def _gemma(file: GGUFFile) -> dict[str, Any]:
    largest = file.get("block_count") == _LARGEST_GEMMA[file.architecture]
    own = {
        "query_pre_attn_scalar": _width(file) if largest else file.get("attention.key_length"),
        "sliding_window": file.get("attention.sliding_window"),
    }
    if file.architecture == "gemma2":
        own["attn_logit_softcapping"] = file.get("attn_logit_softcapping")
        own["final_logit_softcapping"] = file.get("final_logit_softcapping")
    return own


def _gpt2(file: GGUFFile) -> dict[str, Any]:
    return {
        "n_embd": file.get("embedding_length"),
        "n_layer": file.get("block_count"),
        "n_head": file.get("attention.head_count"),
        "n_positions": file.get("context_length"),
        "n_inner": file.get("feed_forward_length"),
        "layer_norm_epsilon": file.get("attention.layer_norm_epsilon"),
    }


def _phi3(file: GGUFFile) -> dict[str, Any]:
    own: dict[str, Any] = {"sliding_window": file.get("attention.sliding_window") or None}
    width, turned = _width(file), file.get("rope.dimension_count")
    if width and turned and turned != width:
        own["partial_rotary_factor"] = turned / width
    long, short = (file.tensors.get(f"rope_factors_{name}.weight") for name in ("long", "short"))
    if long is not None and short is not None:
        own["rope_scaling"] = {
            "rope_type": "longrope",
            "long_factor": long.stored().load().tolist(),
            "short_factor": short.stored().load().tolist(),
            "original_max_position_embeddings": file.get("rope.scaling.original_context_length"),
            "attention_factor": file.get("rope.scaling.attn_factor"),
        }
    return own


def _qwen3_moe(file: GGUFFile) -> dict[str, Any]:
    return {
        "num_experts": file.get("expert_count"),
        "num_experts_per_tok": file.get("expert_used_count"),
        "moe_intermediate_size": file.get("expert_feed_forward_length"),
        "norm_topk_prob": True,
    }


def _deepseek2(file: GGUFFile) -> dict[str, Any]:
    raw = Keys(
        {key: value for key, value in file.metadata.items() if not isinstance(value, list)}, where=str(file.path)
    )
    if raw.get("deepseek2.expert_gating_func") not in (None, 1):
        raise UnsupportedArchitecture(f"{file.path}: experts chosen by sigmoid (DeepSeek-V3) are not supported")
    rope = raw.count("deepseek2.rope.dimension_count")
    mla = "_mla" if raw.get("deepseek2.attention.key_length_mla") is not None else ""
    return {
        "head_dim": None,
        "kv_lora_rank": file.get("attention.kv_lora_rank"),
        "q_lora_rank": file.get("attention.q_lora_rank"),
        "qk_rope_head_dim": rope,
        "qk_nope_head_dim": raw.count(f"deepseek2.attention.key_length{mla}") - rope,
        "v_head_dim": file.get(f"attention.value_length{mla}"),
        "num_key_value_heads": file.get("attention.head_count"),
        "n_routed_experts": file.get("expert_count"),
        "num_experts_per_tok": file.get("expert_used_count"),
        "n_shared_experts": file.get("expert_shared_count"),
        "moe_intermediate_size": file.get("expert_feed_forward_length"),
        "first_k_dense_replace": file.get("leading_dense_block_count"),
        "routed_scaling_factor": file.get("expert_weights_scale"),
        "norm_topk_prob": file.get("expert_weights_norm"),
    }


def _gpt_oss(file: GGUFFile) -> dict[str, Any]:
    scaling = _scaling(file)
    return {
        "num_local_experts": file.get("expert_count"),
        "num_experts_per_tok": file.get("expert_used_count"),
        "intermediate_size": file.get("expert_feed_forward_length") or file.get("feed_forward_length"),
        "sliding_window": file.get("attention.sliding_window"),
        "rope_scaling": {**scaling, "truncate": False} if scaling is not None else {"rope_type": "default"},
    }


_OWN: dict[str, Callable[[GGUFFile], dict[str, Any]]] = {
    "llama": _llama,
    "gemma2": _gemma,
    "gemma3": _gemma,
    "gpt2": _gpt2,
    "phi3": _phi3,
    "qwen3moe": _qwen3_moe,
    "deepseek2": _deepseek2,
    "gpt-oss": _gpt_oss,
}

# --- tensors ----------------------------------------------------------------------------------------------

_ENDS = {
    "token_embd": "model.embed_tokens",
    "position_embd": "model.embed_positions",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_sinks": "self_attn.sinks",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
}
_EXPERTS = {"ffn_gate_exps": "gate_proj", "ffn_up_exps": "up_proj", "ffn_down_exps": "down_proj"}
_NO_WEIGHTS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_LAYER = re.compile(r"blk\.(\d{1,5})\.([a-z0-9_]+)\.(weight|bias)")


def weights_from_gguf(file: GGUFFile, config: ModelConfig) -> dict[str, StoredTensor]:
    """The file's tensors by our names; unknown ones keep theirs."""
    weights: dict[str, StoredTensor] = {}
    for name, tensor in file.tensors.items():
        if name not in _NO_WEIGHTS:
            weights.update(_named(name, tensor, file.architecture, config))
    if config.latent is not None:
        _join_latent(weights, config)
    return weights


def _join_latent(weights: dict[str, StoredTensor], config: ModelConfig) -> None:
    """Newer conversions store the two halves of kv_b_proj apart: (H, rank, nope_dim) and (H, value_dim, rank)."""
    for layer in range(config.n_layers):
        prefix = f"model.layers.{layer}"
        keys, values = (weights.pop(f"{prefix}.attn_{part}_b.weight", None) for part in ("k", "v"))
        if keys is not None and values is not None:
            weights[f"{prefix}.self_attn.kv_b_proj.weight"] = _joined(keys, values)


def _joined(keys: StoredTensor, values: StoredTensor) -> StoredTensor:
    if len(keys.shape) != 3 or len(values.shape) != 3 or keys.shape[:2] != (values.shape[0], values.shape[2]):
        raise CheckpointError(f"attn_k_b {list(keys.shape)} and attn_v_b {list(values.shape)} do not fit together")
    n_heads, rank, nope_dim = keys.shape
    rows = n_heads * (nope_dim + values.shape[1])

    def load() -> Tensor:
        return torch.cat((keys.load().transpose(1, 2), values.load()), 1).reshape(rows, rank)

    return StoredTensor(shape=(rows, rank), dtype=keys.dtype, load=load, element_bytes=keys.element_bytes)


def _named(name: str, tensor: GGUFTensor, architecture: str, config: ModelConfig) -> Iterator[tuple[str, StoredTensor]]:
    match = _LAYER.fullmatch(name)
    if match is None:
        stem, _, kind = name.rpartition(".")
        yield f"{_ENDS.get(stem, stem)}.{kind}", tensor.stored()
        return
    layer, part, kind = match.groups()
    prefix, stored = f"model.layers.{layer}", tensor.stored()
    if part in _EXPERTS:
        for i in range(tensor.shape[0]):
            yield f"{prefix}.mlp.experts.{i}.{_EXPERTS[part]}.{kind}", tensor.part(i)
    elif part == "attn_qkv":
        yield from _split(stored, f"{prefix}.self_attn", kind, _qkv_sizes(config))
    elif part == "ffn_up" and architecture == "phi3":
        inner = config.intermediate_size
        yield from _split(stored, f"{prefix}.mlp", kind, {"gate_proj": inner, "up_proj": inner})
    elif part == "ffn_norm":
        place = "pre_feedforward_layernorm" if architecture in _GEMMA else "post_attention_layernorm"
        yield f"{prefix}.{place}.{kind}", stored
    else:
        ours = f"{prefix}.{_PARTS.get(part, part)}.{kind}"
        yield ours, _undone(ours, stored, architecture, config)


def _qkv_sizes(config: ModelConfig) -> dict[str, int]:
    q_size, kv_size = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    return {"q_proj": q_size, "k_proj": kv_size, "v_proj": kv_size}


def _split(stored: StoredTensor, prefix: str, kind: str, sizes: dict[str, int]) -> Iterator[tuple[str, StoredTensor]]:
    start = 0
    for part, size in sizes.items():
        yield f"{prefix}.{part}.{kind}", stored.rows(start, start + size)
        start += size


def _undone(name: str, stored: StoredTensor, architecture: str, config: ModelConfig) -> StoredTensor:
    """A tensor with the conversion's reordering undone."""
    if architecture == "deepseek2":
        return stored.then(lambda t: deepseek_order(name, t, config))
    if architecture in _PERMUTED and (".q_proj." in name or ".k_proj." in name):
        n_heads = config.n_heads if ".q_proj." in name else config.n_kv_heads
        head_dim = max(1, stored.shape[0] // n_heads)
        return stored.reordered(lambda t: _halves(t, head_dim), head_dim)
    return stored


def _halves(tensor: Tensor, head_dim: int) -> Tensor:
    """Rows of every head from neighbouring pairs to halves; a bias is a matrix of one column."""
    matrix = tensor if tensor.dim() == 2 else tensor[:, None]
    heads = matrix.reshape(-1, head_dim, matrix.size(1))
    return torch.reshape(half_split(heads, rotary_dim=head_dim), tensor.shape)
