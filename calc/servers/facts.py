"""What a config says besides the sizes of the text model: rotary tables, encoders, state types. Never raises.

Table lengths: vLLM's rotary_embedding.py (linear and dynamic: context x factor; YaRN: original context x factor;
longrope: both contexts; else the context). Encoders are counted by their dimensions: 4 h^2 + 2 h I per layer (3 h I if
gated), patches, positions and the projector, with biases if the type has them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from calc.servers.records import ModelFacts

MAX_BYTES = 4 * 2**20
GATED_ENCODERS = ("pixtral", "qwen2_5_vl", "gemma4_vision", "mistral")
GEMMA4_VIDEO_TOKENS = 2496
"""vLLM raises its tokens per step to this for Gemma 4: one video of 32 frames (pull request 43051; logs of 0.25.1)."""
ANY_SIZE, ANY_SIZE_TOKENS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"), 16_384
"""Families whose images keep their size, and the tokens of the largest image that their published processors accept."""
LAID_OUT, ROTATED = 6, 11
"""Q, K and V before and after the change of layout; and with K while it is rotated in float32."""
Config = Mapping[str, Any]


def facts_of(model: str | None, name: str = "") -> ModelFacts:
    """Facts about --model: from the config if it is a path, else those known for the catalog name."""
    if model is not None:
        path = Path(model).expanduser()
        try:
            path = path / "config.json" if path.is_dir() else path
            if path.suffix == ".json" and path.is_file() and path.stat().st_size <= MAX_BYTES:
                config = json.loads(path.read_bytes())
                if isinstance(config, dict):
                    return facts_from_config(_with_beside(config, path))
        except (OSError, ValueError, RecursionError):
            return ModelFacts()
    return named_facts(name)


def _with_beside(config: Config, path: Path) -> Config:
    """`config` with ModelOpt's hf_quant_config.json, if it does not state a quantization itself."""
    beside = path.with_name("hf_quant_config.json")
    if config.get("quantization_config") or not beside.is_file() or beside.stat().st_size > MAX_BYTES:
        return config
    return {**config, "quantization_config": {"quant_method": "modelopt", **json.loads(beside.read_bytes())}}


def named_facts(name: str) -> ModelFacts:
    """Facts about well-known catalog models, by the start of their name, and about their repository's formats."""
    key = name.lower()
    known = next((facts for start, facts in _KNOWN.items() if key.startswith(start)), ModelFacts())
    stored = _stored_config(name)
    return known if stored is None else replace(known, **cache_of(stored))


def _stored_config(name: str) -> Config | None:
    from calc.sources.catalog import models

    entry = models().get(name)
    return None if entry is None else entry.stored


CACHE_ALGORITHMS = {"fp8": "fp8", "nvfp4": "nvfp4"}


def cache_of(config: Config) -> dict[str, Any]:
    """The checkpoint's own cache format and its quantizer, as fields of ModelFacts; {} if it has none.

    vLLM: get_kv_cache_quant_algo_string (ModelOpt's kv_cache_quant_algo, or a kv_cache_scheme of 8 or 4 bits) and
    Attention (any kv_cache_scheme of compressed-tensors means fp8).
    """
    quant = config.get("quantization_config") or config.get("compression_config")
    if not isinstance(quant, Mapping):
        return {}
    if quant.get("quant_method") == "quark":
        return {"cache_scales": "fp8"} if _quark_scales(quant) else {}
    inner = quant.get("quantization")
    inner = inner if isinstance(inner, Mapping) else {}
    said = [part.get(key) for key in ("kv_cache_scheme", "kv_cache_quant_algo") for part in (inner, quant)]
    found = next((value for value in said if value), None)
    method = str(quant.get("quant_method", ""))
    if isinstance(found, str):
        name = CACHE_ALGORITHMS.get(found.lower())
    elif isinstance(found, Mapping):
        name = _scheme(found)
    else:
        name = None
    return {} if name is None else {"cache_format": name, "quantizer": "modelopt" if "modelopt" in method else method}


def _quark_scales(quant: Config) -> bool:
    """Whether Quark's layer_quant_config gives the outputs of kv_cache_group a type: vLLM reads only the scales."""
    export, layers = quant.get("export"), quant.get("layer_quant_config")
    group = export.get("kv_cache_group") if isinstance(export, Mapping) else None
    return bool(group) and isinstance(layers, Mapping) and bool(layers)


def _scheme(scheme: Config) -> str | None:
    if scheme.get("type", "float") != "float":
        return None
    return {8: "fp8", 4: "nvfp4"}.get(_number(scheme, "num_bits"))


def facts_from_config(config: Config) -> ModelFacts:
    """Facts from a parsed config.json; missing values stay at the default."""
    text = config.get("text_config") or config.get("language_config") or config
    text = text if isinstance(text, dict) else config
    vision = config.get("vision_config")
    vision = vision if isinstance(vision, dict) else {}
    kind = str(config.get("model_type", ""))
    state = text.get("mamba_ssm_dtype") or text.get("mamba_ssm_cache_dtype")
    return ModelFacts(
        rope_elements=rope_elements(text),
        vision_params=encoder_params(vision, text, config),
        multimodal=bool(vision),
        **image(vision, config),
        item_tokens=GEMMA4_VIDEO_TOKENS if kind.startswith("gemma4") and vision else 0,
        state_element_bytes={"float32": 4, "bfloat16": 2, "float16": 2}.get(str(state)),
        repeated_kv=kind == "falcon" and bool(config.get("new_decoder_architecture")),
        **cache_of(config if "quantization_config" in config or "compression_config" in config else text),
    )


def _number(config: Config, *names: str) -> int:
    for name in names:
        value = config.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 10**12:
            return int(value)
    return 0


def rope_elements(text: Config) -> int | None:
    """Elements of the precomputed tables; None if they depend on the model's context."""
    context = _number(text, "max_position_embeddings", "n_positions", "max_seq_len")
    if not context or text.get("alibi") is True or text.get("position_embedding_type") == "alibi":
        return None
    scaling = text.get("rope_scaling") or text.get("rope_parameters") or {}
    if not isinstance(scaling, dict):
        return None
    nested = [part for part in scaling.values() if isinstance(part, dict)]
    width = _rotary_width(text, scaling)
    if not width:
        return None
    total = (
        sum(_table_length(part, context, text) for part in nested) if nested else _table_length(scaling, context, text)
    )
    if not nested and _number(text, "rope_local_base_freq") and str(text.get("model_type", "")).startswith("gemma3"):
        total += context
    return total * width


def _rotary_width(text: Config, scaling: Config) -> int:
    if latent := _number(text, "qk_rope_head_dim"):
        return latent
    heads, hidden = _number(text, "num_attention_heads", "n_head"), _number(text, "hidden_size", "n_embd")
    width = _number(text, "head_dim") or (hidden // heads if heads else 0)
    share = text.get("partial_rotary_factor") or scaling.get("partial_rotary_factor") or text.get("rotary_pct") or 1
    return int(width * share) if isinstance(share, int | float) and 0 < share <= 1 else width


def _table_length(scaling: Config, context: int, text: Config) -> int:
    kind = str(scaling.get("rope_type") or scaling.get("type") or "default")
    factor = scaling.get("factor")
    factor = factor if isinstance(factor, int | float) and 0 < factor < 10**6 else 1
    original = _number(scaling, "original_max_position_embeddings") or _number(text, "original_max_position_embeddings")
    if kind in ("linear", "dynamic"):
        return int(context * factor)
    if kind == "yarn":
        return int((original or context) * factor)
    if kind in ("longrope", "su"):
        return context + original
    return context


def image(vision: Config, config: Config) -> dict[str, Any]:
    """Elements, patches and tokens of the largest image, as fields of ModelFacts; {} if unknown."""
    patch = _number(vision, "patch_size", "spatial_patch_size")
    merge = _number(vision, "spatial_merge_size") or _number(config, "spatial_merge_size") or 1
    if not patch:
        return {}
    frames = 1
    if side := _number(vision, "image_size"):
        patches = (side // patch) ** 2
        pixels = side * side
    elif str(config.get("model_type", "")).startswith(ANY_SIZE):
        patches = ANY_SIZE_TOKENS * merge * merge
        pixels, frames = patches * patch * patch, _number(vision, "temporal_patch_size") or 1
    else:
        return {}
    tokens = _number(config, "mm_tokens_per_image") or patches // merge**2
    return {
        "image_elements": 3 * frames * pixels,
        "image_tokens": max(1, tokens),
        "image_patches": patches,
        **_live(vision),
    }


def _live(vision: Config) -> dict[str, int]:
    """Elements per patch that an encoder layer holds at once, in attention and in its MLP."""
    hidden, inner = encoder_widths(vision)
    kind = str(vision.get("model_type", ""))
    rotated = ROTATED if kind.startswith(ANY_SIZE) else LAID_OUT
    return {
        "encoder_hidden": hidden,
        "encoder_attention": rotated * hidden,
        "encoder_mlp": (4 if kind.startswith(GATED_ENCODERS) else 2) * inner,
    }


def encoder_widths(vision: Config) -> tuple[int, int]:
    """Hidden and inner size of the image encoder."""
    h = _number(vision, "hidden_size", "embed_dim")
    if str(vision.get("model_type", "")).startswith("qwen2_vl"):
        h = _number(vision, "embed_dim") or h
        return h, 4 * h
    ratio = vision.get("mlp_ratio")
    return h, _number(vision, "intermediate_size") or int(h * ratio if isinstance(ratio, int | float) else 4 * h)


def encoder_params(vision: Config, text: Config, config: Config) -> int:
    """Parameters of the image encoder and its projector; 0 if there is none."""
    h, inner = encoder_widths(vision)
    n = _number(vision, "num_hidden_layers", "depth", "num_layers")
    if not h or not n:
        return 0
    kind = str(vision.get("model_type", ""))
    gated = kind.startswith(GATED_ENCODERS)
    biases = 0 if kind in ("pixtral",) else 9 * h + inner
    layers = n * (4 * h * h + (3 if gated else 2) * h * inner + 2 * h + biases)
    patch, side = _number(vision, "patch_size"), _number(vision, "image_size")
    patches = 3 * patch * patch * h * (_number(vision, "temporal_patch_size") or 1)
    positions = (side // patch) ** 2 * h if kind.startswith(("siglip", "clip", "llama4")) and patch else 0
    return layers + patches + positions + _projector(vision, text, config, h)


def _projector(vision: Config, text: Config, config: Config, h: int) -> int:
    out = _number(text, "hidden_size") or _number(vision, "out_hidden_size")
    if "projector_output_dim" in vision:  # llama 4: a shuffled MLP, then a linear layer
        a, b = _number(vision, "projector_input_dim"), _number(vision, "projector_output_dim")
        return _number(vision, "intermediate_size") * a + a * b + b * out
    merge = _number(vision, "spatial_merge_size") or _number(config, "spatial_merge_size")
    if str(config.get("model_type", "")).startswith("mistral3"):
        return merge * merge * h * h + h * out + out * out
    if merge > 1:
        return (merge * merge * h) ** 2 + merge * merge * h * out
    return h * out


_GEMMA3_POSITIONS = 131_072 * (8 + 1)
_KNOWN: Mapping[str, ModelFacts] = {
    "gemma-3-4b": ModelFacts(
        vision_params=419_820_000, multimodal=True, rope_elements=_GEMMA3_POSITIONS * 256,
        image_elements=3 * 896 * 896, image_tokens=256,
    ),
    "gemma-3-12b": ModelFacts(
        vision_params=421_290_000, multimodal=True, rope_elements=_GEMMA3_POSITIONS * 256,
        image_elements=3 * 896 * 896, image_tokens=256,
    ),
    "gemma-3-27b": ModelFacts(
        vision_params=423_000_000, multimodal=True, rope_elements=_GEMMA3_POSITIONS * 128,
        image_elements=3 * 896 * 896, image_tokens=256,
    ),
    "gemma-4": ModelFacts(multimodal=True, item_tokens=GEMMA4_VIDEO_TOKENS),
    "llama-4-scout": ModelFacts(vision_params=869_000_000, multimodal=True),
    "qwen3.5": ModelFacts(state_element_bytes=4),
    "qwen3.6": ModelFacts(state_element_bytes=4),
    "falcon-40b": ModelFacts(repeated_kv=True),
}  # fmt: skip
