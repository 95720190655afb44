"""Command R (Cohere) and Cohere 2: parallel layers, LayerNorm without bias, heads rotated in pairs, scaled logits."""

from collections.abc import Mapping
from typing import Any

from engine.families.common import FULL, SLIDING, common_config, layer_types, n_layers_of, window_fields
from engine.families.family import Family, GGUFForm
from engine.families.gguf_keys import layer_kinds, layer_norm_keys
from engine.families.keys import Keys
from engine.families.tensors import in_halves, pairs_restored
from engine.model.config import ModelConfig
from engine.weights.gguf import GGUFFile
from engine.weights.lazy import Stored

_DEFAULTS = {"tie_word_embeddings": True, "logit_scale": 0.0625, "max_position_embeddings": 8192}


def _cohere_config(raw: Keys) -> ModelConfig:
    return _config(raw, theta=5e5, qk_norm=raw.flag("use_qk_norm", False))


def _cohere2_config(raw: Keys) -> ModelConfig:
    """Layers with a window use rotary positions; layers with full attention have no positions."""
    raw = raw.with_defaults({"sliding_window": 4096})
    pattern = raw.count("sliding_window_pattern", 4)
    kinds = layer_types(raw) or [SLIDING if (i + 1) % pattern else FULL for i in range(n_layers_of(raw))]
    turns = tuple(kind == SLIDING for kind in kinds)
    return _config(raw, qk_norm=False, rope_layers=turns, **window_fields(raw, kinds))


def _config(raw: Keys, *, theta: float = 1e4, **changes: Any) -> ModelConfig:
    raw = raw.with_defaults(_DEFAULTS | {"num_key_value_heads": raw.get("num_attention_heads")})
    bias = raw.flag("attention_bias", False)
    return common_config(
        raw,
        theta=theta,
        norm="layernorm",
        norm_bias=False,
        norm_eps=raw.positive("layer_norm_eps", 1e-5),
        block="parallel",
        qk_norm_kind="each",
        qkv_bias=bias,
        o_bias=bias,
        logit_scale=raw.positive("logit_scale"),
        **changes,
    )


def _tensors(tensors: Mapping[str, Stored], config: ModelConfig) -> dict[str, Stored]:
    return {name: in_halves(name, stored, config) for name, stored in tensors.items()}


def _gguf_keys(file: GGUFFile) -> dict[str, Any]:
    return {
        **layer_norm_keys(file),
        "logit_scale": file.get("logit_scale") or 1.0,
        "use_qk_norm": "blk.0.attn_q_norm.weight" in file.tensors,
        "sliding_window": file.get("attention.sliding_window"),
        "layer_types": layer_kinds(file, every=4),
    }


def _gguf(architecture: str) -> GGUFForm:
    return GGUFForm(architecture=architecture, keys=_gguf_keys, restore=pairs_restored)


FAMILIES = {
    "cohere": Family(config=_cohere_config, tensors=_tensors, gguf=_gguf("command-r")),
    "cohere2": Family(config=_cohere2_config, tensors=_tensors, gguf=_gguf("cohere2")),
}
