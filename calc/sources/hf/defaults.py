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
from calc.sources.hf.families import SAME_AS
from calc.sources.hf.reader import (
    HIDDEN_SIZE,
    INTERMEDIATE_SIZE,
    MAX_CONTEXT,
    N_HEADS,
    N_KV_HEADS,
    N_LAYERS,
    VOCAB_SIZE,
)

ALWAYS_WRITTEN = frozenset((*N_LAYERS, *HIDDEN_SIZE, *N_HEADS, *INTERMEDIATE_SIZE, *VOCAB_SIZE, *MAX_CONTEXT))
AMBIGUOUS = frozenset(("q_lora_rank",))
"""Absent, these may as well have been null: some copies of configs drop null keys."""
NAMES = (N_LAYERS, HIDDEN_SIZE, N_HEADS, N_KV_HEADS, INTERMEDIATE_SIZE, VOCAB_SIZE, MAX_CONTEXT)


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
    return {k: v for k, v in found.items() if k not in config and k not in present and k not in left_out}
