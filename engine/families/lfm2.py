"""LFM2: short convolutions in most layers, attention in the others; also with experts."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from engine.families.common import FULL, common_config, layer_types, n_layers_of, window_fields
from engine.families.family import Family, GGUFForm
from engine.families.gguf_keys import expert_keys
from engine.families.keys import Keys
from engine.families.mixtral import mixtral_name
from engine.families.tensors import renamed
from engine.model.config import ConvConfig, ExpertsConfig, ModelConfig
from engine.model.shapes import CHOICE_BIAS
from engine.weights.gguf import GGUFFile
from engine.weights.lazy import Stored, StoredTensor

_DEFAULTS = {"num_key_value_heads": 8, "max_position_embeddings": 128_000}


def _config(raw: Keys) -> ModelConfig:
    raw = raw.with_defaults(_DEFAULTS | {"tie_word_embeddings": raw.flag("tie_embedding", True)})
    kinds = layer_types(raw)
    if kinds is None:
        with_attention = raw.get("full_attn_idxs")
        kinds = [FULL if with_attention is None or i in with_attention else "conv" for i in range(n_layers_of(raw))]
    conv = ConvConfig(width=raw.count("conv_L_cache", 3), bias=raw.flag("conv_bias", False))
    recurrent = tuple(kind != FULL for kind in kinds)
    return common_config(
        raw,
        theta=1e6,
        norm_eps=raw.positive("norm_eps", 1e-5),
        qk_norm=True,
        intermediate_size=_inner_size(raw),
        recurrent=conv if any(recurrent) else None,
        recurrent_layers=recurrent if any(recurrent) else (),
        **window_fields(raw, None),
    )


def _moe_config(raw: Keys) -> ModelConfig:
    n_dense, n_layers = raw.whole("num_dense_layers", 2), n_layers_of(raw)
    experts = ExpertsConfig(
        n_experts=raw.count("num_experts", 32),
        n_active=raw.count("num_experts_per_tok", 4),
        intermediate_size=raw.count("moe_intermediate_size", 1792),
        normalize=raw.flag("norm_topk_prob", True),
        sum_floor=1e-6,
        scale=raw.positive("routed_scaling_factor", 1.0),
        scoring="sigmoid",
        choice_bias=raw.flag("use_expert_bias", True),
    )
    config = _config(raw.with_defaults({"block_auto_adjust_ff_dim": False}))
    return replace(config, experts=experts, expert_layers=tuple(i >= n_dense for i in range(n_layers)))


def _inner_size(raw: Keys) -> int:
    """Two thirds of the stated size, times a factor, rounded up to a multiple; unless the config disables this."""
    stated = raw.count("block_ff_dim", raw.get("intermediate_size"))
    if not raw.flag("block_auto_adjust_ff_dim", True):
        return stated
    inner = int(raw.positive("block_ffn_dim_multiplier", 1.0) * int(2 * stated / 3))
    multiple = raw.count("block_multiple_of", 256)
    return -(-inner // multiple) * multiple


_PARTS = {
    "operator_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "self_attn.out_proj": "self_attn.o_proj",
    "self_attn.q_layernorm": "self_attn.q_norm",
    "self_attn.k_layernorm": "self_attn.k_norm",
}
_ENDS = {"model.embedding_norm": "model.norm"}


_EXPERT = re.compile(
    r"(model\.layers\.\d{1,5})\.feed_forward\.(experts\.\d{1,5}\.w[123]\.weight|gate\.weight|expert_bias)"
)


def _tensors(tensors: Mapping[str, Stored], config: ModelConfig) -> dict[str, Stored]:
    return {_name(name): stored for name, stored in tensors.items()}


def _name(name: str) -> str:
    match = _EXPERT.fullmatch(name)
    if match is None:
        return renamed(name, _PARTS, _ENDS)
    layer, part = match.groups()
    return f"{layer}.mlp.gate.{CHOICE_BIAS}" if part == "expert_bias" else mixtral_name(f"{layer}.mlp.{part}")


def _gguf_keys(file: GGUFFile) -> dict[str, Any]:
    """A layer without KV heads is a convolution."""
    heads = file.get("attention.head_count_kv")
    if not isinstance(heads, list) or not any(heads):
        return {}
    return {
        "sliding_window": file.get("attention.sliding_window") or None,
        "num_key_value_heads": max(heads),
        "layer_types": [FULL if n else "conv" for n in heads],
        "conv_L_cache": file.get("shortconv.l_cache"),
        "norm_eps": file.get("attention.layer_norm_rms_epsilon"),
        "block_auto_adjust_ff_dim": False,
    }


def _restore(name: str, stored: StoredTensor, config: ModelConfig) -> StoredTensor:
    """Restore the dimension that the convolution's matrix lacks in GGUF files."""
    if not name.endswith(".conv.conv.weight") or len(stored.shape) != 2:
        return stored
    return stored.then(lambda tensor: tensor[:, None], (stored.shape[0], 1, stored.shape[1]))


def _gguf_moe_keys(file: GGUFFile) -> dict[str, Any]:
    n_dense = file.get("leading_dense_block_count")
    return {**_gguf_keys(file), **expert_keys(file), "num_dense_layers": n_dense}


def _plain_sum(config: ModelConfig) -> ModelConfig:
    """llama.cpp divides the experts' weights by their plain sum, without a floor."""
    assert config.experts is not None
    return replace(config, experts=replace(config.experts, sum_floor=0.0))


FAMILIES = {
    "lfm2_moe": Family(
        config=_moe_config,
        tensors=_tensors,
        gguf=GGUFForm(architecture="lfm2moe", keys=_gguf_moe_keys, restore=_restore, adapted=_plain_sum),
    ),
    "lfm2": Family(
        config=_config, tensors=_tensors, gguf=GGUFForm(architecture="lfm2", keys=_gguf_keys, restore=_restore)
    ),
}
