"""Llama and Mistral in their original format: params.json, consolidated weights, their own names and row order.

Sources: Meta's llama-models (llama3/args.py, model.py) and mistral-inference (args.py, transformer_layers.py).
"""

import re
from collections.abc import Mapping
from typing import Any

from engine.errors import ConfigError, UnsupportedArchitecture
from engine.families.keys import Keys
from engine.families.tensors import in_halves
from engine.model.config import ModelConfig
from engine.weights.lazy import Stored

_EMBEDDING, _QUERIES, _KEYS, _UP = (
    "tok_embeddings.weight",
    "layers.0.attention.wq.weight",
    "layers.0.attention.wk.weight",
    "layers.0.feed_forward.w1.weight",
)
ASSUMED = "context_is_assumed"
"""Key of `as_config`: params.json does not state the context length."""
_USUAL = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "norm_eps": "rms_norm_eps",
    "head_dim": "head_dim",
    "rope_theta": "rope_theta",
    "sliding_window": "sliding_window",
    "tied_embeddings": "tie_word_embeddings",
    "max_seq_len": "max_position_embeddings",
    "max_position_embeddings": "max_position_embeddings",
}
_TOLD_BY_SHAPES = ("n_kv_heads", "vocab_size", "hidden_dim", "multiple_of", "ffn_dim_multiplier")
_KNOWN = (*_USUAL, *_TOLD_BY_SHAPES, "moe", "use_scaled_rope", "rope_scaling_factor", "model_type", "causal")
_LLAMA31_FACTOR, _LLAMA32_FACTOR, _LLAMA32_WIDTH = 8.0, 32.0, 3072  # width of the 3B; the smallest Llama 3.1 is wider


def is_native(tensors: Mapping[str, Stored]) -> bool:
    """Whether the names are those of Meta's and Mistral's own files."""
    return _EMBEDDING in tensors and _QUERIES in tensors


def as_config(params: object, tensors: Mapping[str, Stored]) -> dict[str, Any]:
    """Convert a params.json and the shapes of its weights to the keys of a config.json.

    Raises ConfigError, UnsupportedArchitecture.
    """
    if not isinstance(params, dict):
        raise ConfigError("params.json must hold one JSON object")
    raw = Keys(params, where="params.json")
    for key, value in params.items():
        if key not in _KNOWN and value not in (None, False):
            raise UnsupportedArchitecture(f"params.json: {key} is not supported")
    said = {usual: params[own] for own, usual in _USUAL.items() if params.get(own) is not None}
    head_dim = raw.count("head_dim", raw.count("dim") // raw.count("n_heads"))
    said |= {
        "model_type": "mistral",
        "head_dim": head_dim,
        "num_key_value_heads": tensors[_KEYS].shape[0] // head_dim if _KEYS in tensors else raw.get("n_kv_heads"),
        "intermediate_size": tensors[_UP].shape[0] if _UP in tensors else raw.get("hidden_dim"),
        "vocab_size": tensors[_EMBEDDING].shape[0],
        "sliding_window": raw.get("sliding_window"),
        "rope_scaling": _scaling(raw),
    }
    if "max_position_embeddings" not in said:
        said |= {"max_position_embeddings": _context_of(raw), ASSUMED: True}
    if (moe := raw.section("moe")) is not None:
        said |= {
            "model_type": "mixtral",
            "num_local_experts": moe.count("num_experts"),
            "num_experts_per_tok": moe.count("num_experts_per_tok"),
        }
    return {"rms_norm_eps": 1e-5, **said}


def _context_of(params: Keys) -> int:
    """The context length of the matching release, because none of these files states it."""
    if params.get("use_scaled_rope"):
        return 131_072  # Llama 3.1 and later
    if params.get("multiple_of") is None:
        return 32_768  # Mistral
    return 8192 if params.positive("rope_theta", 1e4) > 1e4 else 2048  # Llama 3, Llama 1


def _scaling(raw: Keys) -> dict[str, Any] | None:
    if not raw.flag("use_scaled_rope", False):
        return None
    published = _LLAMA32_FACTOR if raw.count("dim") <= _LLAMA32_WIDTH else _LLAMA31_FACTOR
    return {
        "rope_type": "llama3",
        "factor": raw.positive("rope_scaling_factor", published),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


_PARTS = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
}
_ENDS = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}
_LAYER = re.compile(r"layers\.(\d{1,5})\.(.+)\.(weight|bias)")


def usual_names(tensors: Mapping[str, Stored], config: ModelConfig) -> dict[str, Stored]:
    """The tensors under the names that transformers gives them, heads in the engine's order."""
    return {
        ours: in_halves(ours, stored, config)
        for name, stored in tensors.items()
        if name != "rope.freqs"  # a table that can be computed from the config
        for ours in [_usual_name(name)]
    }


def _usual_name(name: str) -> str:
    match = _LAYER.fullmatch(name)
    if match is None:
        stem, _, kind = name.rpartition(".")
        return f"{_ENDS[stem]}.{kind}" if stem in _ENDS else name
    layer, part, kind = match.groups()
    # experts: feed_forward.gate, feed_forward.experts.0.w1
    ours = _PARTS.get(part) or part.replace("feed_forward.", "block_sparse_moe.", 1)
    return f"model.layers.{layer}.{ours}.{kind}"
