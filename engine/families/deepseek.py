"""DeepSeek-V2 and V3, GLM-4.7-Flash: latent attention, experts in groups, rotation of adjacent pairs."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from engine.errors import UnsupportedArchitecture
from engine.families.common import common_config, n_layers_of, rope_fields
from engine.families.family import Family, GGUFForm
from engine.families.gguf_keys import n_layers
from engine.families.keys import Keys
from engine.families.rope import read_rope
from engine.families.tensors import all_loaded, half_split
from engine.model.config import ExpertsConfig, LatentConfig, ModelConfig
from engine.weights.gguf import GGUFFile
from engine.weights.lazy import Stored, StoredTensor


def _v2_config(raw: Keys) -> ModelConfig:
    return _config(raw, _v2_experts(raw))


def _v3_config(raw: Keys) -> ModelConfig:
    method, scoring = raw.text("topk_method", "noaux_tc"), raw.text("scoring_func", "sigmoid")
    if (method, scoring) != ("noaux_tc", "sigmoid"):
        raise UnsupportedArchitecture(
            f"config.json: experts chosen by {method} of {scoring}; noaux_tc of sigmoid is supported in DeepSeek-V3"
        )
    defaults: dict[str, Any] = {"n_routed_experts": 256, "moe_intermediate_size": 2048, "n_group": 8, "topk_group": 4}
    defaults |= {"num_experts_per_tok": 8, "norm_topk_prob": True, "routed_scaling_factor": 2.5, "n_shared_experts": 1}
    return _config(raw, experts_of_v3(raw.with_defaults(defaults | {"first_k_dense_replace": 3})))


_FLASH = {
    "q_lora_rank": 768, "kv_lora_rank": 512, "qk_nope_head_dim": 192, "v_head_dim": 256,
    "n_routed_experts": 64, "num_experts_per_tok": 4, "moe_intermediate_size": 1536, "n_shared_experts": 1,
    "norm_topk_prob": True, "routed_scaling_factor": 1.8, "rms_norm_eps": 1e-5, "max_position_embeddings": 202_752,
}  # fmt: skip


def _flash_config(raw: Keys) -> ModelConfig:
    """GLM-4.7-Flash: DeepSeek-V3 with a config that lists which layers have experts."""
    raw = raw.with_defaults(_FLASH | {"first_k_dense_replace": 1})
    kinds = raw.items("mlp_layer_types", n=n_layers_of(raw))
    own = {"expert_layers": tuple(kind == "sparse" for kind in kinds)} if kinds is not None else {}
    return _config(raw, experts_of_v3(raw) | own)


def experts_of_v3(raw: Keys) -> dict[str, Any]:
    """The fields for experts chosen by sigmoid scores, with a bias that affects only the choice."""
    inner = raw.count("moe_intermediate_size")
    experts = ExpertsConfig(
        n_experts=raw.count("n_routed_experts"),
        n_active=raw.count("num_experts_per_tok"),
        intermediate_size=inner,
        normalize=raw.flag("norm_topk_prob", False),
        scale=raw.positive("routed_scaling_factor", 1.0),
        shared_size=inner * raw.whole("n_shared_experts", 0),
        n_groups=raw.count("n_group", 1),
        n_active_groups=raw.count("topk_group", 1),
        group_best=2,
        scoring="sigmoid",
        choice_bias=True,
    )
    return _layers_with(experts, raw, n_dense=raw.whole("first_k_dense_replace", 0))


def _config(raw: Keys, experts: dict[str, Any]) -> ModelConfig:
    raw = raw.with_defaults({"num_key_value_heads": raw.get("num_attention_heads"), "q_lora_rank": 1536})
    latent = LatentConfig(
        rank=raw.count("kv_lora_rank", 512),
        rope_dim=raw.count("qk_rope_head_dim", 64),
        nope_dim=raw.count("qk_nope_head_dim", 128),
        value_dim=raw.count("v_head_dim", 128),
        query_rank=raw.optional_count("q_lora_rank"),
    )
    if not raw.flag("rope_interleave", True):
        raise UnsupportedArchitecture("config.json: rope_interleave is false; only true is supported")
    rope = read_rope(raw, rotary_dim=latent.rope_dim)
    head_dim = latent.nope_dim + latent.rope_dim
    bias = raw.flag("attention_bias", False)
    return common_config(
        raw,
        head_dim=head_dim,
        **rope_fields(rope),
        attention_scale=rope.attention_factor / math.sqrt(head_dim),
        latent=latent,
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=raw.flag("mlp_bias", False),
        **experts,
    )


def _v2_experts(raw: Keys) -> dict[str, Any]:
    method, scoring = raw.text("topk_method", "greedy"), raw.text("scoring_func", "softmax")
    if method not in ("greedy", "group_limited_greedy") or scoring != "softmax" or raw.flag("norm_topk_prob", False):
        raise UnsupportedArchitecture(
            f"config.json: experts chosen by {method} of {scoring} (norm_topk_prob {raw.get('norm_topk_prob')}); "
            "greedy or group_limited_greedy of softmax, not normalized, is supported"
        )
    inner = raw.count("moe_intermediate_size", 1407)
    grouped = method == "group_limited_greedy"
    experts = ExpertsConfig(
        n_experts=raw.count("n_routed_experts", 64),
        n_active=raw.count("num_experts_per_tok"),
        intermediate_size=inner,
        normalize=False,
        scale=raw.positive("routed_scaling_factor", 1.0),
        shared_size=inner * raw.whole("n_shared_experts", 2),
        n_groups=raw.count("n_group") if grouped else 1,
        n_active_groups=raw.count("topk_group") if grouped else 1,
    )
    return _layers_with(experts, raw, n_dense=raw.whole("first_k_dense_replace", 0))


def _layers_with(experts: ExpertsConfig, raw: Keys, *, n_dense: int) -> dict[str, Any]:
    """Flags per layer: experts in every layer except the first ``n_dense``."""
    return {"experts": experts, "expert_layers": tuple(i >= n_dense for i in range(n_layers_of(raw)))}


def _tensors(tensors: Mapping[str, Stored], config: ModelConfig) -> dict[str, Stored]:
    return {name: _in_order(name, tensor, config) for name, tensor in all_loaded(tensors).items()}


def _in_order(name: str, tensor: Tensor, config: ModelConfig) -> Tensor:
    """Reorder rotated rows: in queries those at the end of each head, in keys those after the compressed ones."""
    latent = config.latent
    assert latent is not None
    bias = tensor.dim() == 1
    matrix = tensor[:, None] if bias else tensor
    if name.endswith((".q_proj.weight", ".q_b_proj.weight")) and matrix.size(0) % config.n_heads == 0:
        heads = matrix.view(config.n_heads, -1, matrix.size(-1))
    elif ".kv_a_proj_with_mqa." in name:
        heads = matrix[None]
    else:
        return tensor
    rest = heads.size(1) - latent.rope_dim
    if rest < 0:
        return tensor  # a wrong shape is refused later, with all shapes
    turned = half_split(heads[:, rest:], rotary_dim=latent.rope_dim)
    ordered = torch.cat((heads[:, :rest], turned), 1).reshape(matrix.shape)
    return ordered[:, 0] if bias else ordered


def _by_sigmoid(file: GGUFFile) -> bool:
    """Whether experts use sigmoid scores; like llama.cpp, recognizes GLM-4.7-Flash files without this key by size."""
    stated, embedding = file.get("expert_gating_func"), file.tensors.get("token_embd.weight")
    flash = n_layers(file) in (47, 48) and embedding is not None and embedding.shape[0] == 154_880
    return stated == _SIGMOID or (flash and not stated)


_SIGMOID = 2  # llama.cpp's number for sigmoid scores


def _gguf_keys(file: GGUFFile) -> dict[str, Any]:
    raw = Keys(
        {key: value for key, value in file.metadata.items() if not isinstance(value, list)}, where=str(file.path)
    )
    if file.get("attention.temperature_scale"):
        raise UnsupportedArchitecture(f"{file.path} scales attention by the position, which is not supported here")
    sigmoid, groups = _by_sigmoid(file), file.get("expert_group_count")
    grouped = not sigmoid and isinstance(groups, int) and groups > 1
    rope = raw.count("deepseek2.rope.dimension_count")
    mla = "_mla" if raw.get("deepseek2.attention.key_length_mla") is not None else ""
    return {
        "model_type": "deepseek_v3" if sigmoid else "deepseek_v2",
        "topk_method": "group_limited_greedy" if grouped else None,
        "n_group": groups or (1 if sigmoid else None),
        "topk_group": file.get("expert_group_used_count") or (1 if sigmoid else None),
        "head_dim": None,
        "kv_lora_rank": file.get("attention.kv_lora_rank"),
        "q_lora_rank": file.get("attention.q_lora_rank"),
        "qk_rope_head_dim": rope,
        "qk_nope_head_dim": raw.count(f"deepseek2.attention.key_length{mla}") - rope,
        "v_head_dim": file.get(f"attention.value_length{mla}"),
        "num_key_value_heads": file.get("attention.head_count"),
        "n_routed_experts": file.get("expert_count"),
        "num_experts_per_tok": file.get("expert_used_count"),
        "n_shared_experts": file.get("expert_shared_count"),
        "moe_intermediate_size": file.get("expert_feed_forward_length"),
        "first_k_dense_replace": file.get("leading_dense_block_count"),
        "routed_scaling_factor": file.get("expert_weights_scale"),
        "norm_topk_prob": file.get("expert_weights_norm") or False,
    }


def _adapted(config: ModelConfig) -> ModelConfig:
    """llama.cpp ranks groups by their best two experts in DeepSeek-V2 too, although that model uses the best one.

    It also has one eps for all norms.
    """
    assert config.latent is not None
    experts = replace(config.experts, group_best=2) if config.experts is not None else None
    return replace(config, experts=experts, latent=replace(config.latent, norm_eps=config.norm_eps))


def _restore(name: str, stored: StoredTensor, config: ModelConfig) -> StoredTensor:
    return stored.then(lambda tensor: _in_order(name, tensor, config))


FAMILIES = {
    "deepseek_v2": Family(
        config=_v2_config,
        tensors=_tensors,
        gguf=GGUFForm(
            architecture="deepseek2", keys=_gguf_keys, restore=_restore, adapted=_adapted, off=("q_lora_rank",)
        ),
    ),
    "deepseek_v3": Family(config=_v3_config, tensors=_tensors),
    "glm4_moe_lite": Family(config=_flash_config, tensors=_tensors),
}
