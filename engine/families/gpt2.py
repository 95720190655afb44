"""GPT-2: learned positions, LayerNorm, biases everywhere, matrices stored transposed."""

import re
from collections.abc import Mapping
from typing import Any

from engine.errors import UnsupportedArchitecture
from engine.families.common import common_config
from engine.families.family import Family, GGUFForm
from engine.families.keys import Keys
from engine.families.tensors import all_loaded, split_qkv
from engine.model.config import ModelConfig
from engine.weights.gguf import GGUFFile
from engine.weights.lazy import Stored


def gpt2_config(raw: Keys, *, n_kv_heads: int | None = None, hidden_act: str = "gelu_new") -> ModelConfig:
    """The config from GPT-2's keys; ``n_kv_heads`` None: one per query head; ``hidden_act``: the default activation."""
    raw = raw.with_defaults({"n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257})
    for key in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        if raw.flag(key, False):
            raise UnsupportedArchitecture(f"config.json: {key} is true; it is not supported")
    width = raw.count("n_embd")
    names = {
        "hidden_size": width,
        "num_hidden_layers": raw.get("n_layer"),
        "num_attention_heads": raw.get("n_head"),
        "num_key_value_heads": n_kv_heads or raw.get("n_head"),
        "max_position_embeddings": raw.get("n_positions"),
        "intermediate_size": raw.get("n_inner") or 4 * width,
        "hidden_act": raw.get("activation_function") or hidden_act,
    }
    changes: dict[str, Any] = {} if raw.flag("scale_attn_weights", True) else {"attention_scale": 1.0}
    return common_config(
        Keys({"tie_word_embeddings": True, **raw.document, **names}),
        rope_theta=1e4,
        norm="layernorm",
        norm_eps=raw.positive("layer_norm_epsilon", 1e-5),
        positions="learned",
        gated_mlp=False,
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        **changes,
    )


_PARTS = {
    "ln_1": "input_layernorm",
    "ln_2": "post_attention_layernorm",
    "attn.c_proj": "self_attn.o_proj",
    "mlp.c_fc": "mlp.up_proj",
    "mlp.c_proj": "mlp.down_proj",
}
ENDS = {"wte": "model.embed_tokens", "wpe": "model.embed_positions", "ln_f": "model.norm"}
_LAYER = re.compile(r"h\.(\d{1,5})\.(.+)\.(weight|bias)")


def _tensors(tensors: Mapping[str, Stored], config: ModelConfig) -> dict[str, Stored]:
    out: dict[str, Stored] = {}
    for full_name, tensor in all_loaded(tensors).items():
        name = full_name.removeprefix("transformer.")
        match = _LAYER.fullmatch(name)
        if match is None:
            stem, _, kind = name.rpartition(".")
            out[f"{ENDS[stem]}.{kind}" if stem in ENDS else full_name] = tensor
            continue
        layer, part, kind = match.groups()
        prefix = f"model.layers.{layer}."
        value = tensor.t() if tensor.dim() == 2 else tensor  # GPT-2's "Conv1D" stores (inputs, outputs)
        if part == "attn.c_attn":
            out |= split_qkv(value, f"{prefix}self_attn", kind, config)
        else:
            out[f"{prefix}{_PARTS.get(part, part)}.{kind}"] = value
    return out


def gpt2_keys(file: GGUFFile) -> dict[str, Any]:
    """The sizes under GPT-2's names."""
    return {
        "n_embd": file.get("embedding_length"),
        "n_layer": file.get("block_count"),
        "n_head": file.get("attention.head_count"),
        "n_positions": file.get("context_length"),
        "n_inner": file.get("feed_forward_length"),
        "layer_norm_epsilon": file.get("attention.layer_norm_epsilon"),
    }


FAMILIES = {"gpt2": Family(config=gpt2_config, tensors=_tensors, gguf=GGUFForm(architecture="gpt2", keys=gpt2_keys))}
