"""Keys of a config.json that most families share, read into a `ModelConfig`.

Absent optional keys take the default of the Hugging Face class for that model_type (transformers 5.23).
"""

import math
from collections.abc import Sequence
from typing import Any

from engine.errors import ConfigError, UnsupportedArchitecture
from engine.families.keys import Keys
from engine.families.rope import RopeKeys, read_rope
from engine.model.config import MAX_LAYERS, Activation, DynamicRopeScaling, ModelConfig

ACTIVATIONS: dict[str, Activation] = {
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu2": "relu2",
    "quick_gelu": "gelu_sigmoid",
    "xielu": "xielu",
}
SLIDING, FULL = "sliding_attention", "full_attention"


def common_config(raw: Keys, *, head_dim: int | None = None, theta: float = 1e4, **changes: Any) -> ModelConfig:
    """A Llama with the config's sizes and the ``changes`` a family makes to it."""
    n_heads, hidden_size = raw.count("num_attention_heads"), raw.count("hidden_size")
    if head_dim is None:
        head_dim = head_dim_of(raw, hidden_size, n_heads)
    if "rope_theta" not in changes:
        changes |= rope_fields(read_rope(raw, theta=theta, rotary_dim=head_dim))
    partial = raw.get("partial_rotary_factor")
    if partial not in (None, 1, 1.0) and "rotary_dim" not in changes:
        raise UnsupportedArchitecture(f"config.json: partial_rotary_factor is {partial!r}; only 1 is supported")
    fields: dict[str, Any] = {
        "n_layers": n_layers_of(raw),
        "n_heads": n_heads,
        "n_kv_heads": raw.count("num_key_value_heads"),
        "head_dim": head_dim,
        "hidden_size": hidden_size,
        "intermediate_size": raw.count("intermediate_size"),
        "vocab_size": raw.count("vocab_size"),
        "max_positions": raw.count("max_position_embeddings"),
        "norm": "rmsnorm",
        "norm_eps": raw.positive("rms_norm_eps", 1e-6),
        "positions": "rope",
        "activation": activation_of(raw, "hidden_act"),
        "gated_mlp": True,
        "qkv_bias": False,
        "o_bias": False,
        "mlp_bias": False,
        "head_bias": False,
        "qk_norm": False,
        "tied": raw.flag("tie_word_embeddings", False),
        "attention_scale": 1 / math.sqrt(head_dim),
        "eos_ids": raw.token_ids("eos_token_id"),
        "bos_id": next(iter(raw.token_ids("bos_token_id")), None),
    }
    return ModelConfig(**(fields | changes))


def text_section(raw: Keys) -> Keys:
    """The config of the text model inside a multimodal one, completed from the outer config; else the config itself."""
    text = raw.section("text_config")
    if text is None:
        return raw
    outer = ("tie_word_embeddings", "eos_token_id", "bos_token_id")
    stated = {key: raw.document[key] for key in outer if raw.get(key) is not None}
    return Keys({**text.document, **stated}, where=text.where)


def n_layers_of(raw: Keys) -> int:
    """The number of layers, checked before anything is built per layer."""
    n = raw.count("num_hidden_layers")
    if n > MAX_LAYERS:
        raise ConfigError(f"{raw.where}: num_hidden_layers is {n}; at most {MAX_LAYERS} are supported")
    return n


def partial_rope(raw: Keys, head_dim: int, *, theta: float = 1e4, share: float = 1.0) -> dict[str, Any]:
    """The fields for partly rotated heads: the first ``share`` of each head, or ``partial_rotary_factor`` if stated."""
    parameters = raw.section("rope_parameters") or raw
    share = parameters.positive("partial_rotary_factor", raw.positive("partial_rotary_factor", share))
    rotary_dim = int(head_dim * share)
    return {"rotary_dim": rotary_dim, **rope_fields(read_rope(raw, theta=theta, rotary_dim=rotary_dim))}


def rope_fields(rope: RopeKeys) -> dict[str, Any]:
    """The fields of a ModelConfig that a base and a scaling set."""
    fields: dict[str, Any] = {"rope_theta": rope.theta, "rope_scaling": rope.scaling}
    if isinstance(scaling := rope.scaling, DynamicRopeScaling):  # its configs state the context before stretching
        fields["max_positions"] = int(scaling.factor * scaling.original_max_positions)
    return fields


def head_dim_of(raw: Keys, hidden_size: int, n_heads: int) -> int:
    if raw.get("head_dim") is not None:
        return raw.count("head_dim")
    if hidden_size % n_heads:
        raise ConfigError(
            f"config.json: hidden_size ({hidden_size}) is not a multiple of num_attention_heads ({n_heads}) "
            "and head_dim is not given"
        )
    return hidden_size // n_heads


def activation_of(raw: Keys, key: str) -> Activation:
    name = raw.text(key, "silu")
    if name not in ACTIVATIONS:
        raise UnsupportedArchitecture(
            f'config.json: {key} "{name}" is not supported; supported: {", ".join(ACTIVATIONS)}'
        )
    return ACTIVATIONS[name]


def window_fields(raw: Keys, kinds: Sequence[object] | None) -> dict[str, Any]:
    """The window's fields from ``sliding_window`` and the layers' kinds; without kinds, every layer has the window."""
    if raw.get("sliding_window") is None:
        return {}
    if kinds is None:
        return {"sliding_window": raw.count("sliding_window")}
    unknown = [kind for kind in kinds if kind not in (SLIDING, FULL)]
    if unknown:
        raise UnsupportedArchitecture(
            f"config.json: layer_types has {unknown[0]!r}; {SLIDING} and {FULL} are supported"
        )
    slides = tuple(kind == SLIDING for kind in kinds)
    if not any(slides):
        return {}
    return {"sliding_window": raw.count("sliding_window"), "sliding_layers": () if all(slides) else slides}


def layer_types(raw: Keys) -> list[Any] | None:
    return raw.items("layer_types", n=n_layers_of(raw))
