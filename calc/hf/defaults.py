"""The values that a transformers class uses for keys missing in a config (assets/class_defaults.json).

transformers writes the inner config of a multimodal model without keys that have their default value, so a published
config may lack even hidden_size; the class's value is meant. At the top level of a file, the main sizes are always
written: if one is missing, the file is wrong, and no default is used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from assets import path as asset_path
from calc.hf.architecture import Architecture
from calc.hf.feed_forward import EXPERT_SIZE, N_EXPERTS, N_SHARED, TOP_K
from calc.hf.reader import (
    HEAD_DIM,
    HIDDEN_SIZE,
    INTERMEDIATE_SIZE,
    MAX_CONTEXT,
    N_HEADS,
    N_KV_HEADS,
    N_LAYERS,
    VOCAB_SIZE,
)
from calc.model.spec import MAX_LAYERS

ALWAYS_WRITTEN = frozenset((*N_LAYERS, *HIDDEN_SIZE, *N_HEADS, *INTERMEDIATE_SIZE, *VOCAB_SIZE, *MAX_CONTEXT))
AMBIGUOUS = frozenset(("q_lora_rank",))
"""If absent, these may have been null: some copies of configs drop null keys."""
NAMES = (
    N_LAYERS, HIDDEN_SIZE, N_HEADS, N_KV_HEADS, HEAD_DIM, INTERMEDIATE_SIZE, VOCAB_SIZE, MAX_CONTEXT, N_EXPERTS,
    TOP_K, EXPERT_SIZE, N_SHARED,
)  # fmt: skip
"""Alternative names of one size: a default is used only if the config has none of them."""
SAY_KINDS = frozenset("layer_types layers_block_type full_attention_interval attn_type_list linear_attn_config".split())
SAY_EXPERTS = frozenset("mlp_layer_types first_k_dense_replace moe_layer_freq mlp_only_layers".split())


@cache
def _classes() -> Mapping[str, Mapping[str, Any]]:
    with asset_path("class_defaults.json").open("rb") as stream:
        classes: dict[str, dict[str, Any]] = json.load(stream)["classes"]
    return classes


def class_defaults(model_type: str, arch: Architecture) -> dict[str, Any]:
    """Every key for which the class of `model_type` has a default."""
    names = (model_type, *arch.names)
    of_class = next((_classes()[name] for name in names if name in _classes()), {})
    return {**of_class, **arch.defaults}


def left_out(
    config: Mapping[str, Any], arch: Architecture, of_class: Mapping[str, Any], *, inner: bool
) -> dict[str, Any]:
    """The keys that `config` lacks under all their names, with the class's values.

    `inner`: it is part of a multimodal config, where every key may be missing.
    """
    present = {name for names in NAMES if any(name in config for name in names) for name in names}
    absent = present | (frozenset() if inner else ALWAYS_WRITTEN | AMBIGUOUS)
    plain = {key: value for key, value in of_class.items() if key not in config and key not in absent}
    return {**plain, **_derived(arch, {**config, **plain})}


def _derived(arch: Architecture, config: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults that a class computes: the kinds of its layers and which of them have experts."""
    found: dict[str, Any] = {}
    n_layers = config.get("num_hidden_layers")
    known = isinstance(n_layers, int) and 0 < n_layers <= MAX_LAYERS
    if (period := arch.layer_types) and known and not SAY_KINDS & {*config}:
        found["layer_types"] = [period[i % len(period)] for i in range(config["num_hidden_layers"])]
    if arch.first_dense and not SAY_EXPERTS & {*config}:
        found["first_k_dense_replace"] = 1
    return found
