"""StarCoder2: LayerNorm, biases everywhere, an MLP without a gate, windows."""

from collections.abc import Mapping
from typing import Any

from engine.families.common import common_config, window_fields
from engine.families.family import Family, GGUFForm
from engine.families.gguf_keys import has_qkv_bias, layer_norm_keys
from engine.families.keys import Keys
from engine.families.tensors import renamed
from engine.model.config import ModelConfig
from engine.weights.gguf import GGUFFile
from engine.weights.lazy import Stored


def _config(raw: Keys) -> ModelConfig:
    raw = raw.with_defaults({"hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True, "num_key_value_heads": 2})
    bias = raw.flag("use_bias", True)
    return common_config(
        raw,
        norm="layernorm",
        norm_eps=raw.positive("norm_epsilon", 1e-5),
        gated_mlp=False,
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=bias,
        **window_fields(raw, None),
    )


_PARTS = {"mlp.c_fc": "mlp.up_proj", "mlp.c_proj": "mlp.down_proj"}


def _tensors(tensors: Mapping[str, Stored], config: ModelConfig) -> dict[str, Stored]:
    return {renamed(name, _PARTS, {}): stored for name, stored in tensors.items()}


def _gguf_keys(file: GGUFFile) -> dict[str, Any]:
    """The conversion does not write the window, and llama.cpp does not use it."""
    return {**layer_norm_keys(file), "use_bias": has_qkv_bias(file)}


FAMILIES = {
    "starcoder2": Family(config=_config, tensors=_tensors, gguf=GGUFForm(architecture="starcoder2", keys=_gguf_keys))
}
