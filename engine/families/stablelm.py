"""StableLM: LayerNorm, partly rotated heads, and in later models norms per head and parallel layers."""

import re
from collections.abc import Mapping
from typing import Any

import torch

from engine.families.common import common_config, head_dim_of, partial_rope
from engine.families.family import Family, GGUFForm
from engine.families.gguf_keys import has_qkv_bias, layer_norm_keys, turned_share
from engine.families.keys import Keys
from engine.model.config import ModelConfig
from engine.weights.gguf import GGUFFile
from engine.weights.lazy import Stored, loaded


def _config(raw: Keys) -> ModelConfig:
    raw = raw.with_defaults({"num_key_value_heads": raw.get("num_attention_heads")})
    head_dim = head_dim_of(raw, raw.count("hidden_size"), raw.count("num_attention_heads"))
    return common_config(
        raw,
        norm="layernorm",
        norm_eps=raw.positive("layer_norm_eps", 1e-5),
        qkv_bias=raw.flag("use_qkv_bias", False),
        qk_norm=raw.flag("qk_layernorm", False),
        qk_norm_kind="each",
        block="parallel" if raw.flag("use_parallel_residual", False) else "pre",
        **partial_rope(raw, head_dim, share=0.25),
    )


_NORM = re.compile(r"(.+\.[qk])_layernorm\.norms\.(\d{1,5})\.weight")


def _tensors(tensors: Mapping[str, Stored], config: ModelConfig) -> dict[str, Stored]:
    """Stack the norms of the heads (one tensor per head) to one tensor of shape (heads, h)."""
    out: dict[str, Stored] = {}
    norms: dict[str, dict[int, Stored]] = {}
    for name, stored in tensors.items():
        match = _NORM.fullmatch(name)
        if match is None:
            out[name] = stored
        else:
            norms.setdefault(f"{match[1]}_norm.weight", {})[int(match[2])] = stored
    for name, heads in norms.items():
        out[name] = torch.stack([loaded(heads[i]) for i in sorted(heads)])
    return out


def _gguf_keys(file: GGUFFile) -> dict[str, Any]:
    return {
        **layer_norm_keys(file),
        **turned_share(file),
        "use_qkv_bias": has_qkv_bias(file),
        "qk_layernorm": "blk.0.attn_q_norm.weight" in file.tensors,
        "use_parallel_residual": "blk.0.ffn_norm.weight" not in file.tensors,
    }


FAMILIES = {
    "stablelm": Family(config=_config, tensors=_tensors, gguf=GGUFForm(architecture="stablelm", keys=_gguf_keys))
}
