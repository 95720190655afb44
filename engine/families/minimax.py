"""MiniMax-M2: query and key norms over all heads, partly rotated heads, experts chosen by sigmoid scores."""

from collections.abc import Mapping
from typing import Any

from engine.families.common import common_config, partial_rope
from engine.families.family import Family, GGUFForm
from engine.families.gguf_keys import expert_keys, turned_share
from engine.families.keys import Keys
from engine.families.mixtral import mixtral_tensors
from engine.model.config import ExpertsConfig, ModelConfig
from engine.model.shapes import CHOICE_BIAS
from engine.weights.gguf import GGUFFile
from engine.weights.lazy import Stored


def _config(raw: Keys) -> ModelConfig:
    raw = raw.with_defaults({"num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 196_608})
    head_dim, turned = raw.count("head_dim"), raw.optional_count("rotary_dim")
    experts = ExpertsConfig(
        n_experts=raw.count("num_local_experts", 256),
        n_active=raw.count("num_experts_per_tok", 8),
        intermediate_size=raw.count("intermediate_size"),
        normalize=True,
        scoring="sigmoid",
        choice_bias=True,
    )
    return common_config(
        raw,
        qk_norm=raw.flag("use_qk_norm", True),
        qk_norm_kind="all",
        experts=experts,
        **partial_rope(raw, head_dim, theta=5e6, share=turned / head_dim if turned else 1.0),
    )


def _tensors(tensors: Mapping[str, Stored], config: ModelConfig) -> dict[str, Stored]:
    ours = mixtral_tensors(tensors, config)
    return {name.replace(f".mlp.{CHOICE_BIAS}", f".mlp.gate.{CHOICE_BIAS}"): stored for name, stored in ours.items()}


def _gguf_keys(file: GGUFFile) -> dict[str, Any]:
    inner = file.get("expert_feed_forward_length") or file.get("feed_forward_length")
    return {**expert_keys(file), **turned_share(file), "intermediate_size": inner}


FAMILIES = {
    "minimax_m2": Family(config=_config, tensors=_tensors, gguf=GGUFForm(architecture="minimax-m2", keys=_gguf_keys))
}
