"""EXAONE 4: norms only after attention and MLP; most layers of the 32B have a window, and only those use RoPE."""

from typing import Any

from engine.families.common import FULL, SLIDING, common_config, layer_types, n_layers_of, window_fields
from engine.families.family import Family, GGUFForm
from engine.families.gguf_keys import layer_kinds
from engine.families.keys import Keys
from engine.model.config import ModelConfig
from engine.weights.gguf import GGUFFile


def _config(raw: Keys) -> ModelConfig:
    raw = raw.with_defaults(
        {"num_key_value_heads": 32, "rms_norm_eps": 1e-5, "sliding_window": 4096, "max_position_embeddings": 2048}
    )
    return common_config(raw, block="post", qk_norm=True, **_windows(raw))


def _windows(raw: Keys) -> dict[str, Any]:
    if raw.get("sliding_window") is None:
        return {}
    kinds = layer_types(raw) or _kinds(raw)
    return {"rope_layers": tuple(kind == SLIDING for kind in kinds), **window_fields(raw, kinds)}


def _kinds(raw: Keys) -> list[str]:
    """Layer kinds: every fourth layer has full attention; or a pattern of letters (L: window), the last layer full."""
    pattern, n_layers = raw.get("sliding_window_pattern"), n_layers_of(raw)
    if isinstance(pattern, str) and pattern:
        local = [pattern[i % len(pattern)] == "L" and i < n_layers - 1 for i in range(n_layers)]
    else:
        every = raw.count("sliding_window_pattern", 4)
        local = [(i + 1) % every != 0 for i in range(n_layers)]
    return [SLIDING if near else FULL for near in local]


def _gguf_keys(file: GGUFFile) -> dict[str, Any]:
    """llama.cpp recognizes the 32B by its number of layers; only the 32B has a window."""
    if file.get("block_count") != _LAYERS_OF_32B:
        return {"sliding_window": None}
    window = file.get("attention.sliding_window") or 4096
    return {"sliding_window": window, "layer_types": layer_kinds(file, every=4, window=window)}


_LAYERS_OF_32B = 64
FAMILIES = {
    "exaone4": Family(config=_config, gguf=GGUFForm(architecture="exaone4", keys=_gguf_keys, off=("sliding_window",)))
}
