"""Converts ``params.json``, as published by Mistral and Meta, into an equivalent config.json.

Sources: vLLM (``transformers_utils/configs/mistral.py``) for Mistral's keys; Meta's ``llama/model.py`` (FeedForward)
for the inner size, which its files give as a multiple and a factor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from calc.errors import SourceError
from calc.hf.reader import shown
from calc.model.spec import MAX_LAYERS

FILE = "params.json"
KEYS: Mapping[str, str] = {
    "dim": "hidden_size", "n_layers": "num_hidden_layers", "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads", "hidden_dim": "intermediate_size", "norm_eps": "rms_norm_eps",
    "tied_embeddings": "tie_word_embeddings", "max_seq_len": "max_position_embeddings",
}  # fmt: skip
EXPERT_KEYS: Mapping[str, str] = {
    "num_experts": "n_routed_experts", "expert_hidden_dim": "moe_intermediate_size",
    "num_shared_experts": "n_shared_experts", "num_expert_groups": "n_group",
    "num_expert_groups_per_tok": "topk_group", "route_every_n": "moe_layer_freq",
}  # fmt: skip
RUNNING = ("expert_parallel", "expert_model_parallel", "routed_scale", "moe_tp", "moe_ep")
"""Keys of a `moe` section on how experts are run."""
MAX_MULTIPLE = 2**20


def is_params(config: Mapping[str, Any]) -> bool:
    """Whether the keys are those of a params.json."""
    return "dim" in config and "n_layers" in config and "hidden_size" not in config


def as_config(params: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The same with the keys of a config.json. Raises SourceError if it does not determine the sizes."""
    rest = {key: value for key, value in params.items() if key not in KEYS}
    config = {**rest, **{usual: params[own] for own, usual in KEYS.items() if own in params}}
    if "multiple_of" in params:
        return _meta(config, source)
    return _mistral(config, source)


def _meta(config: dict[str, Any], source: str) -> dict[str, Any]:
    """Llama: two thirds of four times dim, times a factor, rounded up to a multiple; the vocabulary may be the
    tokenizer's."""
    if config.get("vocab_size") == -1:
        raise SourceError(f"{source}: vocab_size is -1 (the tokenizer's): write the number (32000 for Llama 1 and 2)")
    if images := [key for key in config if key.startswith("vision_")]:
        raise SourceError(f"{source}: {images[0]} means that layers attend to images: use the model's config.json")
    config["intermediate_size"] = _inner_size(config, source)
    config.setdefault("num_key_value_heads", config.get("num_attention_heads"))
    said = {"multiple_of", "ffn_dim_multiplier", "use_scaled_rope"}
    return {"model_type": "llama", **{key: value for key, value in config.items() if key not in said}}


def _inner_size(config: Mapping[str, Any], source: str) -> int:
    dim, multiple = (_number(config, key, source) for key in ("hidden_size", "multiple_of"))
    factor = config.get("ffn_dim_multiplier")
    size = 8 * dim // 3
    if factor is not None:
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < 100:
            raise SourceError(f"{source}: ffn_dim_multiplier must be a number above 0, not {shown(factor)}")
        size = int(factor * size)
    return -(-size // multiple) * multiple


def _number(config: Mapping[str, Any], key: str, source: str) -> int:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= MAX_MULTIPLE:
        raise SourceError(f"{source}: {key} must be a whole number, not {shown(value)}")
    return value


def _mistral(config: dict[str, Any], source: str) -> dict[str, Any]:
    """Mistral: dense, with experts (Mixtral), or with latent attention and experts (Large 3)."""
    config = {**config, **_windows(config, source)}
    quantized = config.pop("quantization", None)
    if quantized is not None:
        config["quantization_config"] = _quantization(quantized, source)
    encoder, sound = config.pop("vision_encoder", None), config.pop("multimodal", None)
    if isinstance(sound, dict) and "vision_encoder_args" in sound:
        encoder = sound["vision_encoder_args"]
    if isinstance(encoder, dict):
        config["vision_config"] = {"model_type": "pixtral", **encoder}
    elif sound is not None:
        config["audio_config"] = sound
    moe = config.pop("moe", None)
    latent = config.get("kv_lora_rank") is not None
    if isinstance(moe, dict):
        config |= {EXPERT_KEYS.get(key, key): value for key, value in moe.items() if key not in RUNNING}
    kind = "deepseek_v3" if latent else "mixtral" if moe else "mistral"
    return {"model_type": kind, **config}


def _windows(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """A window for all layers, a list of windows that is repeated, or none."""
    window = config.get("sliding_window")
    if not isinstance(window, list):
        return {"sliding_window": window}
    n_layers, sizes = config.get("num_hidden_layers"), {size for size in window if size is not None}
    if not isinstance(n_layers, int) or not 0 < n_layers <= MAX_LAYERS or not window or n_layers % len(window):
        raise SourceError(f"{source}: sliding_window must be a list that the layers repeat")
    if len(sizes) > 1:
        raise SourceError(f"{source}: sliding_window must have one size beside null, not {shown(window)}")
    types = ["full_attention" if size is None else "sliding_attention" for size in window]
    return {"sliding_window": next(iter(sizes), None), "layer_types": types * (n_layers // len(window))}


def _quantization(quantized: object, source: str) -> object:
    """Mistral's own fp8 fields as a quantization_config; a quantization_config is left unchanged."""
    if isinstance(quantized, dict) and quantized.get("qformat_weight") == "fp8_e4m3":
        dynamic = quantized.get("qscheme_act") == "NO_SCALES"
        return {"quant_method": "fp8", "activation_scheme": "dynamic" if dynamic else "static"}
    if isinstance(quantized, dict) and ("quant_method" in quantized or "config_groups" in quantized):
        return quantized
    raise SourceError(f"{source}: kvscope does not know this quantization (only fp8_e4m3): give --weight-format")
