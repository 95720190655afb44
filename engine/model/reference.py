"""The assignment's own state dict: its names, and the config that its shapes imply. No torch here."""

import math
import re
from collections.abc import Mapping

from engine.errors import ConfigError
from engine.model.config import ModelConfig
from engine.model.shapes import Shape

REFERENCE_NORM_EPS = 1e-5  # torch's LayerNorm default, which the assignment's model keeps

# (assignment's name, ours); inside a layer both follow "layers.{i}."
_REFERENCE_NAMES = (
    ("token_embedding", "model.embed_tokens"),
    ("pos_embedding", "model.embed_positions"),
    ("attention.W_q", "self_attn.q_proj"),
    ("attention.W_k", "self_attn.k_proj"),
    ("attention.W_v", "self_attn.v_proj"),
    ("attention.W_o", "self_attn.o_proj"),
    ("feed_forward.fc1", "mlp.up_proj"),
    ("feed_forward.fc2", "mlp.down_proj"),
    ("norm1", "input_layernorm"),
    ("norm2", "post_attention_layernorm"),
    ("norm", "model.norm"),
    ("output_projection", "lm_head"),
)
_FROM_REFERENCE = dict(_REFERENCE_NAMES)
_TO_REFERENCE = {ours: theirs for theirs, ours in _REFERENCE_NAMES}
_REFERENCE_LAYER = re.compile(r"layers\.(\d{1,5})\.(.+)")


def is_reference(names: Mapping[str, object]) -> bool:
    """Whether a state dict uses the assignment's names."""
    return "token_embedding.weight" in names


def from_reference_name(name: str) -> str:
    """``layers.0.attention.W_q.weight`` -> ``model.layers.0.self_attn.q_proj.weight``; unknown: unchanged."""
    match = _REFERENCE_LAYER.fullmatch(name)
    prefix, rest = (f"model.layers.{match[1]}.", match[2]) if match else ("", name)
    stem, _, kind = rest.rpartition(".")
    return f"{prefix}{_FROM_REFERENCE[stem]}.{kind}" if stem in _FROM_REFERENCE else name


def to_reference_name(name: str) -> str:
    """The inverse of `from_reference_name`, for messages that quote the keys of the file."""
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
    prefix, rest = (f"layers.{match[1]}.", match[2]) if match else ("", name)
    stem, _, kind = rest.rpartition(".")
    return f"{prefix}{_TO_REFERENCE[stem]}.{kind}" if stem in _TO_REFERENCE else name


def config_from_reference(shapes: Mapping[str, Shape], *, n_heads: int = 1) -> ModelConfig:
    """The config that the shapes of an assignment-style state dict imply. Raises ConfigError.

    The width is divided among ``n_heads`` heads (1 by default), each with scale 1/sqrt(head_dim); every other size is
    read from a shape. Norms may lack their biases, or all their weights; a missing output head is refused elsewhere.
    """
    vocab_size, hidden_size = _matrix(shapes, "token_embedding.weight")
    max_positions, _ = _matrix(shapes, "pos_embedding.weight")
    intermediate_size, _ = _matrix(shapes, "layers.0.feed_forward.fc1.weight")
    if n_heads < 1 or hidden_size % n_heads:
        raise ConfigError(f"the width {hidden_size} is not divisible by {n_heads} heads")
    norms = [name for name in shapes if name.partition(".")[0] == "norm" or ".norm1." in name or ".norm2." in name]
    layers = {int(match[1]) for name in shapes if (match := _REFERENCE_LAYER.fullmatch(name))}
    return ModelConfig(
        n_layers=max(layers) + 1,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_dim=hidden_size // n_heads,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        vocab_size=vocab_size,
        max_positions=max_positions,
        norm="layernorm",
        norm_eps=REFERENCE_NORM_EPS,
        norm_bias=any(name.endswith(".bias") for name in norms),
        norm_weights=bool(norms),
        positions="learned",
        activation="relu",
        gated_mlp=False,
        qkv_bias="layers.0.attention.W_q.bias" in shapes,
        o_bias="layers.0.attention.W_o.bias" in shapes,
        mlp_bias="layers.0.feed_forward.fc1.bias" in shapes,
        head_bias="output_projection.bias" in shapes,
        qk_norm=False,
        tied=False,
        attention_scale=1 / math.sqrt(hidden_size // n_heads),
    )


def _matrix(shapes: Mapping[str, Shape], name: str) -> tuple[int, int]:
    shape = shapes.get(name)
    if shape is None:
        raise ConfigError(f"the weight file has no {name}, which gives the model's sizes")
    if len(shape) != 2 or not all(shape):
        raise ConfigError(f"{name} has shape {list(shape)}; expected a matrix")
    return shape[0], shape[1]
