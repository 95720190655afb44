"""The context length of a model, including its rotary scaling.

As in vLLM (``_get_and_verify_max_len``): linear, dynamic and YaRN scaling extend the context by their factor (YaRN the
original context). For Llama 3, longrope and Gemma 3, max_position_embeddings already includes the scaling.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

STATED_SCALED = ("default", "llama3", "longrope", "mrope", "su")
"""Kinds of scaling that max_position_embeddings already includes."""
MOST_FACTOR = 10**6


def longest_context(config: Mapping[str, Any], context: int) -> int:
    """The longest context of a config that states `context`.

    >>> yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}
    >>> longest_context({"rope_scaling": yarn}, 40_960)
    131072
    >>> longest_context({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 131_072)
    131072
    """
    if str(config.get("model_type", "")).startswith("gemma3"):
        return context
    return max((_stretched(part, context) for part in scalings(config)), default=context)


def scalings(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The rotary settings of a config: one, or one per kind of layer."""
    found = config.get("rope_scaling") or config.get("rope_parameters")
    if isinstance(found, Mapping):
        nested = [part for part in found.values() if isinstance(part, Mapping)]
        yield from nested or [found]


def _stretched(scaling: Mapping[str, Any], context: int) -> int:
    kind = str(scaling.get("rope_type") or scaling.get("type") or "default")
    factor = _factor(scaling.get("factor"))
    if kind in STATED_SCALED or factor is None:
        return context
    original = scaling.get("original_max_position_embeddings") if kind == "yarn" else None
    return int((original if isinstance(original, int) and original > 0 else context) * factor)


def _factor(value: object) -> int | float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if 0 < value < MOST_FACTOR else None
