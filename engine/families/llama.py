"""Llama, Mistral, SmolLM3 and close relatives: the pattern that the other families change."""

from typing import Any

import torch
from torch import Tensor

from engine.errors import UnsupportedArchitecture
from engine.families.common import FULL, SLIDING, common_config, layer_types, n_layers_of, text_section, window_fields
from engine.families.family import Family, GGUFForm
from engine.families.gguf_keys import expert_keys, rope_scaling
from engine.families.keys import Keys
from engine.families.tensors import half_split
from engine.model.config import ModelConfig, QueryGrowth
from engine.weights.gguf import GGUFFile
from engine.weights.lazy import StoredTensor


def _llama_config(raw: Keys) -> ModelConfig:
    raw = raw.with_defaults({"num_key_value_heads": raw.get("num_attention_heads")})
    bias = raw.flag("attention_bias", False)
    return common_config(raw, qkv_bias=bias, o_bias=bias, mlp_bias=raw.flag("mlp_bias", False))


def _mistral_config(raw: Keys) -> ModelConfig:
    # The class default is 4096, and later Mistrals write null to switch the window off.
    raw = raw.with_defaults({"sliding_window": 4096})
    return common_config(raw, **window_fields(raw, layer_types(raw)))


def _mistral3_config(raw: Keys) -> ModelConfig:
    """The text model inside a multimodal Mistral 3."""
    text, kinds = text_section(raw), {"mistral": _mistral_config, "ministral3": _ministral3_config}
    kind = "mistral" if text is raw else text.text("model_type", "mistral")
    if kind not in kinds:
        raise UnsupportedArchitecture(
            f"{text.where}: model_type is {kind!r}; {' and '.join(kinds)} are supported in mistral3"
        )
    return kinds[kind](text)


_MINISTRAL3_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 16.0,
    "original_max_position_embeddings": 16_384,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}


def _ministral3_config(raw: Keys) -> ModelConfig:
    """Ministral 3: queries are scaled up by position, in one step per original context length."""
    raw = raw.with_defaults({"num_key_value_heads": 8, "head_dim": 128, "rms_norm_eps": 1e-5})
    raw = raw.with_defaults({"max_position_embeddings": 262_144})
    if raw.get("rope_parameters") is None and raw.get("rope_scaling") is None:
        raw = raw.with_defaults({"rope_parameters": _MINISTRAL3_ROPE})
    rope = raw.section("rope_parameters") or raw.section("rope_scaling") or raw
    beta = rope.optional_positive("llama_4_scaling_beta")
    every = rope.count("original_max_position_embeddings", raw.count("max_position_embeddings"))
    growth = QueryGrowth(beta=beta, every=every) if beta is not None else None
    return common_config(raw, theta=1e6, query_growth=growth, **window_fields(raw, layer_types(raw)))


def _ministral_config(raw: Keys) -> ModelConfig:
    raw = raw.with_defaults({"num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131_072})
    return common_config(raw, **window_fields(raw, layer_types(raw)))


def _arcee_config(raw: Keys) -> ModelConfig:
    heads = {"num_key_value_heads": raw.get("num_attention_heads")}
    raw = raw.with_defaults(heads | {"hidden_act": "relu2", "rms_norm_eps": 1e-5, "max_position_embeddings": 4096})
    bias = raw.flag("attention_bias", False)
    return common_config(raw, qkv_bias=bias, o_bias=bias, mlp_bias=raw.flag("mlp_bias", False), gated_mlp=False)


def _seed_oss_config(raw: Keys) -> ModelConfig:
    raw = raw.with_defaults({"num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 524_288})
    return common_config(
        raw,
        qkv_bias=raw.flag("attention_bias", True),
        o_bias=raw.flag("attention_out_bias", False),
        mlp_bias=raw.flag("mlp_bias", False),
    )


def _smollm3_config(raw: Keys) -> ModelConfig:
    raw = raw.with_defaults({"tie_word_embeddings": True})
    n_layers, interval = n_layers_of(raw), raw.count("no_rope_layer_interval", 4)
    turning = raw.items("no_rope_layers", n=n_layers)  # despite the name, 1 means that a layer uses rotary positions
    turns = (
        tuple(bool(turn) for turn in turning) if turning else tuple((i + 1) % interval != 0 for i in range(n_layers))
    )
    bias = raw.flag("attention_bias", False)
    windows = window_fields(raw, layer_types(raw)) if raw.flag("use_sliding_window", False) else {}
    return common_config(
        raw, theta=2e6, qkv_bias=bias, o_bias=bias, mlp_bias=raw.flag("mlp_bias", False), rope_layers=turns, **windows
    )


def _cwm_config(raw: Keys) -> ModelConfig:
    """Code World Model: a Llama with window attention, except in every fourth layer."""
    raw = raw.with_defaults(_CWM)
    kinds = layer_types(raw) or [SLIDING if i % 4 else FULL for i in range(n_layers_of(raw))]
    return common_config(raw, theta=1e6, mlp_bias=raw.flag("mlp_bias", False), **window_fields(raw, kinds))


_CWM = {
    "num_key_value_heads": 8,
    "head_dim": 128,
    "sliding_window": 8192,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5,
}


def _llama_keys(file: GGUFFile) -> dict[str, Any]:
    """Mixtral's GGUF files have the architecture llama."""
    return {"model_type": "mixtral", **expert_keys(file)} if file.get("expert_count") else {}


def _mistral3_keys(file: GGUFFile) -> dict[str, Any]:
    """Also for Mistral Small 3.1 and later: without a temperature, queries are not scaled."""
    beta, rope = file.get("attention.temperature_scale"), rope_scaling(file)
    if beta and rope is None:
        original = file.get("rope.scaling.original_context_length") or file.get("context_length")
        rope = {"rope_type": "default", "original_max_position_embeddings": original}
    fast, slow = (file.get(f"rope.scaling.yarn_beta_{end}") for end in ("fast", "slow"))
    stated = {"beta_fast": fast, "beta_slow": slow, "llama_4_scaling_beta": beta or None}
    rope = {**(rope or {"rope_type": "default"}), **{key: value for key, value in stated.items() if value is not None}}
    return {"rope_scaling": rope}


def _seed_oss_keys(file: GGUFFile) -> dict[str, Any]:
    return {"attention_out_bias": "blk.0.attn_output.bias" in file.tensors}


def halves_restored(name: str, stored: StoredTensor, config: ModelConfig) -> StoredTensor:
    """Undo the conversion's reordering of queries and keys to adjacent pairs."""
    if ".q_proj." not in name and ".k_proj." not in name:
        return stored
    n_heads = config.n_heads if ".q_proj." in name else config.n_kv_heads
    head_dim = max(1, stored.shape[0] // n_heads)
    return stored.reordered(lambda t: _halves(t, head_dim), head_dim)


def _halves(tensor: Tensor, head_dim: int) -> Tensor:
    """Reorder the rows of each head from adjacent pairs to halves; a bias counts as a matrix of one column."""
    matrix = tensor if tensor.dim() == 2 else tensor[:, None]
    heads = matrix.reshape(-1, head_dim, matrix.size(1))
    return torch.reshape(half_split(heads, rotary_dim=head_dim), tensor.shape)


FAMILIES = {
    "llama": Family(
        config=_llama_config, gguf=GGUFForm(architecture="llama", keys=_llama_keys, restore=halves_restored)
    ),
    "mistral": Family(config=_mistral_config),
    "mistral3": Family(config=_mistral3_config),
    "ministral": Family(config=_ministral_config),
    "ministral3": Family(
        config=_ministral3_config,
        gguf=GGUFForm(architecture="mistral3", keys=_mistral3_keys, restore=halves_restored),
    ),
    "arcee": Family(config=_arcee_config, gguf=GGUFForm(architecture="arcee", restore=halves_restored)),
    "seed_oss": Family(config=_seed_oss_config, gguf=GGUFForm(architecture="seed_oss", keys=_seed_oss_keys)),
    "cwm": Family(config=_cwm_config),
    "smollm3": Family(config=_smollm3_config, gguf=GGUFForm(architecture="smollm3", restore=halves_restored)),
}
