"""What a transformers class takes for the keys that a config leaves out (assets/class_defaults.json).

transformers writes the inner config of a multimodal model without the keys at their default value, so that a
published config may lack even hidden_size: it means the class's. At the top of a file the sizes that make a model
what it is are always written: one that is missing there is a fault of the file and is not filled in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from assets import path as asset_path
from calc.hf.experts import EXPERT_SIZE, N_EXPERTS, N_SHARED, TOP_K
from calc.hf.families import SAME_AS
from calc.hf.reader import (
    HIDDEN_SIZE,
    INTERMEDIATE_SIZE,
    MAX_CONTEXT,
    MAX_LAYERS,
    N_HEADS,
    N_KV_HEADS,
    N_LAYERS,
    VOCAB_SIZE,
)

ALWAYS_WRITTEN = frozenset((*N_LAYERS, *HIDDEN_SIZE, *N_HEADS, *INTERMEDIATE_SIZE, *VOCAB_SIZE, *MAX_CONTEXT))
AMBIGUOUS = frozenset(("q_lora_rank",))
"""Absent, these may as well have been null: some copies of configs drop null keys."""
NAMES = (
    N_LAYERS, HIDDEN_SIZE, N_HEADS, N_KV_HEADS, INTERMEDIATE_SIZE, VOCAB_SIZE, MAX_CONTEXT, N_EXPERTS, TOP_K,
    EXPERT_SIZE, N_SHARED,
)  # fmt: skip

REPEATED: Mapping[str, tuple[str, ...]] = {
    "granite_swa": ("full_attention", "sliding_attention", "sliding_attention", "sliding_attention"),
    "granitemoe_swa": ("full_attention", "sliding_attention", "sliding_attention", "sliding_attention"),
    "granitemoehybrid": ("linear_attention",),
    "kolibri1": (*("sliding_attention",) * 4, "full_attention"),
    "minimax": ("full_attention", "linear_attention"),
    "ministral": ("sliding_attention",),
    "qwen3_next": (*("linear_attention",) * 3, "full_attention"),
    "qwen3_5_text": (*("linear_attention",) * 3, "full_attention"),
    "qwen3_5_moe_text": (*("linear_attention",) * 3, "full_attention"),
}
"""Kinds of layers that a class repeats where nothing in the config says them."""
FIRST_DENSE = frozenset("axk1 axk2 glm4_moe_lite hy_v3 hy_v4 kimi_linear laguna mimo_v2_flash".split())
"""Classes whose first layer is dense and whose others have experts, where the config does not say it."""
ASKED_FOR: Mapping[str, tuple[str, ...]] = {
    "bailing_hybrid": ("linear_head_dim",),
    "bamba": ("attn_layer_indices",),
    "flint": ("layer_types", "mlp_only_layers"),
    "hy_v4": ("indexer_types",),
    "lfm3": ("layer_types",),
}
"""Keys whose default a class works out in a way of its own: they must be there, if only as null."""
SAY_KINDS = frozenset("layer_types layers_block_type full_attention_interval attn_type_list linear_attn_config".split())
SAY_EXPERTS = frozenset("mlp_layer_types first_k_dense_replace moe_layer_freq mlp_only_layers".split())


@cache
def _classes() -> Mapping[str, Mapping[str, Any]]:
    with asset_path("class_defaults.json").open("rb") as stream:
        classes: dict[str, dict[str, Any]] = json.load(stream)["classes"]
    return classes


def class_defaults(config: Mapping[str, Any], *, inner: bool) -> dict[str, Any]:
    """The keys that `config` lacks, under no other name either, with what its class takes for them.

    `inner`: it stood inside a multimodal config, where every key may be left out.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        return {}
    found = _classes().get(model_type) or _classes().get(SAME_AS.get(model_type, model_type), {})
    present = {name for names in NAMES if any(name in config for name in names) for name in names}
    left_out = frozenset() if inner else ALWAYS_WRITTEN | AMBIGUOUS
    plain = {k: v for k, v in found.items() if k not in config and k not in present and k not in left_out}
    return {**plain, **_derived(model_type, {**config, **plain})}


def _derived(model_type: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a class works out: the kinds of its layers and which of them have experts."""
    found: dict[str, Any] = {}
    n_layers = config.get("num_hidden_layers")
    if (
        model_type in REPEATED
        and isinstance(n_layers, int)
        and 0 < n_layers <= MAX_LAYERS
        and not SAY_KINDS & {*config}
    ):
        period = REPEATED[model_type]
        found["layer_types"] = [period[i % len(period)] for i in range(n_layers)]
    if model_type in FIRST_DENSE and not SAY_EXPERTS & {*config}:
        found["first_k_dense_replace"] = 1
    return found
