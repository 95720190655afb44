"""Multimodal models by their outer model_type: their encoders, and the projectors to the text model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from calc.hf.encoders import CHANNELS, Fields, Unknown, linear, tower

Counted = Callable[[Fields, int], int]
"""(the whole config, hidden_size of the text model) -> parameters of encoders and projectors."""


def encoder_params(config: Mapping[str, Any], hidden_size: int) -> int | None:
    """Parameters of all encoders and projectors of a multimodal config; None if not determined."""
    count = MODELS.get(str(config.get("model_type", "")))
    if count is None:
        return None
    try:
        return count(Fields(config), hidden_size)
    except Unknown:
        return None


def _tower_alone(assumed: str) -> Counted:
    """Encoders whose output already has the text model's width."""

    def count(config: Fields, hidden_size: int) -> int:
        return tower(config, "vision_config", assumed)[0]

    return count


def _gemma3(config: Fields, hidden_size: int) -> int:
    params, vision = tower(config, "vision_config", "siglip_vision_model")
    return params + vision.n("hidden_size") * (hidden_size + 1)


def _paligemma(config: Fields, hidden_size: int) -> int:
    params, vision = tower(config, "vision_config", "siglip_vision_model")
    return params + linear(vision.n("hidden_size"), hidden_size)


def _llava(config: Fields, hidden_size: int) -> int:
    """Two linear layers from the outputs of the named encoder layers."""
    params, vision = tower(config, "vision_config", "clip_vision_model")
    inputs = vision.n("hidden_size") * (config.size("vision_feature_layer") or 1)
    bias = config.flag("multimodal_projector_bias", True)
    return params + linear(inputs, hidden_size, bias) + linear(hidden_size, hidden_size, bias)


def _llava_next(config: Fields, hidden_size: int) -> int:
    """The same, and an end-of-line embedding."""
    return _llava(config, hidden_size) + hidden_size


def _onevision(config: Fields, hidden_size: int) -> int:
    if not config.part("vision_config").kind:
        raise Unknown
    return _llava_next(config, hidden_size)


def _mistral3(config: Fields, hidden_size: int) -> int:
    """A norm, patches merged, two linear layers."""
    params, vision = tower(config, "vision_config", "pixtral")
    h, side = vision.n("hidden_size"), config.n("spatial_merge_size") if "spatial_merge_size" in config.values else 2
    bias = config.flag("multimodal_projector_bias")
    inputs = h * (config.size("vision_feature_layer") or 1)
    merged = h + h * h * side**2
    return params + merged + linear(inputs, hidden_size, bias) + linear(hidden_size, hidden_size, bias)


def _idefics3(config: Fields, hidden_size: int) -> int:
    params, vision = tower(config, "vision_config", "idefics3_vision")
    factor = config.n("scale_factor") if "scale_factor" in config.values else 2
    return params + vision.n("hidden_size") * factor**2 * hidden_size


def _llama4(config: Fields, hidden_size: int) -> int:
    params, vision = tower(config, "vision_config", "llama4_vision_model")
    return params + vision.n("vision_output_dim") * hidden_size


def _mllama(config: Fields, hidden_size: int) -> int:
    params, vision = tower(config, "vision_config", "mllama_vision_model")
    return params + linear(vision.n("vision_output_dim"), hidden_size)


def _internvl(config: Fields, hidden_size: int) -> int:
    """A norm of four patches together, two linear layers."""
    params, vision = tower(config, "vision_config", "internvl_vision")
    if config.values.get("downsample_ratio", 0.5) != 0.5:
        raise Unknown
    wide = 4 * vision.n("hidden_size")
    return params + 2 * wide + linear(wide, hidden_size) + linear(hidden_size, hidden_size)


def _kimi_k25(config: Fields, hidden_size: int) -> int:
    params, vision = tower(config, "vision_config", "kimi_k25_vision")
    h = vision.n("hidden_size")
    wide = h * 4
    return params + 2 * h + linear(wide, wide) + linear(wide, hidden_size)


def _minimax_m3(config: Fields, hidden_size: int) -> int:
    """Two linear layers per patch, then two for four patches together."""
    own = {**config.part("vision_config").values, "model_type": "minimax_m3_vl_vision"}
    params, vision = tower(Fields({**config.values, "vision_config": own}), "vision_config", "minimax_m3_vl_vision")
    inner = config.n("projector_hidden_size") if "projector_hidden_size" in config.values else hidden_size
    once = linear(vision.n("hidden_size"), inner) + linear(inner, hidden_size)
    return params + once + linear(4 * hidden_size, inner) + linear(inner, hidden_size)


def _step(config: Fields, hidden_size: int) -> int:
    params, vision = tower(config, "vision_config", "step3p5_vision")
    return params + 4 * vision.n("hidden_size") * hidden_size


def _gemma4(config: Fields, hidden_size: int) -> int:
    """Images, and audio if the model has it; both projected without a bias."""
    params = 0
    if isinstance(config.values.get("vision_config"), Mapping):
        own, vision = tower(config, "vision_config", "gemma4_vision")
        params += own + vision.n("hidden_size") * hidden_size
    if isinstance(config.values.get("audio_config"), Mapping):
        own, sound = tower(config, "audio_config", "gemma4_audio")
        params += own + sound.n("output_proj_dims") * hidden_size
    if not params:
        raise Unknown
    return params


def _gemma4_unified(config: Fields, hidden_size: int) -> int:
    """No tower: merged patches with a position by row and column, and raw audio, both projected."""
    params = 0
    if isinstance(config.values.get("vision_config"), Mapping):
        vision = config.part("vision_config", UNIFIED_VISION)
        wide, h = CHANNELS * (vision.n("patch_size") * vision.n("pooling_kernel_size")) ** 2, vision.n("mm_embed_dim")
        params += 2 * wide + linear(wide, h) + 4 * h + 2 * vision.n("mm_posemb_size") * h
        params += vision.n("output_proj_dims") * hidden_size
    if isinstance(config.values.get("audio_config"), Mapping):
        params += config.part("audio_config").n("output_proj_dims", "audio_embed_dim") * hidden_size
    if not params:
        raise Unknown
    return params


UNIFIED_VISION = {
    "patch_size": 16, "pooling_kernel_size": 3, "mm_embed_dim": 3840, "mm_posemb_size": 1120, "output_proj_dims": 3840,
}  # fmt: skip
"""What Gemma4UnifiedVisionConfig assumes."""


def _gated_projector(config: Fields, hidden_size: int, *, norm: bool) -> int:
    params, vision = tower(config, "vision_config", "siglip_vision_model")
    factor = config.n("downsample_factor") if "downsample_factor" in config.values else 2
    wide = vision.n("hidden_size") * factor**2
    inner = config.n("alignment_intermediate_size") if "alignment_intermediate_size" in config.values else 36_864
    return params + (2 * wide if norm else 0) + linear(wide, inner) + linear(inner // 2, hidden_size)


def _cohere2(config: Fields, hidden_size: int) -> int:
    return _gated_projector(config, hidden_size, norm=False)


def _qwen2_audio(config: Fields, hidden_size: int) -> int:
    params, sound = tower(config, "audio_config", "whisper")
    return params + linear(sound.n("d_model"), hidden_size)


def _voxtral(config: Fields, hidden_size: int) -> int:
    """Four frames together, two linear layers without biases."""
    params, sound = tower(config, "audio_config", "whisper")
    return params + sound.n("intermediate_size") * hidden_size + hidden_size * hidden_size


MODELS: Mapping[str, Counted] = {
    "gemma3": _gemma3,
    "paligemma": _paligemma,
    "llava": _llava,
    "llava_next": _llava_next,
    "llava_next_video": _llava_next,
    "llava_onevision": _onevision,
    "mistral3": _mistral3,
    "mistral_large4": _mistral3,
    "idefics3": _idefics3,
    "smolvlm": _idefics3,
    "qwen2_vl": _tower_alone("qwen2_vl"),
    "qwen2_5_vl": _tower_alone("qwen2_5_vl"),
    "qwen3_vl": _tower_alone("qwen3_vl"),
    "qwen3_vl_moe": _tower_alone("qwen3_vl"),
    "qwen3_5": _tower_alone("qwen3_5"),
    "qwen3_5_moe": _tower_alone("qwen3_5"),
    "glm4v": _tower_alone("glm4v"),
    "glm4v_moe": _tower_alone("glm4v"),
    "glm46v": _tower_alone("glm4v"),
    "llama4": _llama4,
    "mllama": _mllama,
    "internvl": _internvl,
    "internvl_chat": _internvl,
    "kimi_k25": _kimi_k25,
    "minimax_m3_vl": _minimax_m3,
    "step3p7": _step,
    "gemma4": _gemma4,
    "gemma4_unified": _gemma4_unified,
    "qwen4_exp": _tower_alone("qwen3_5"),
    "cohere_compass": _tower_alone("qwen3_vl"),
    "cohere2_vision": _cohere2,
    "qwen2_audio": _qwen2_audio,
    "voxtral": _voxtral,
}
"""Outer model_types whose encoders are counted."""
