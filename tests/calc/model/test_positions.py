"""How long a context a config states: the lengths that vLLM's _get_and_verify_max_len derives."""

from __future__ import annotations

from typing import Any

import pytest

from calc.model.positions import longest_context

CASES: list[tuple[dict[str, Any], int, int]] = [
    ({}, 40_960, 40_960),
    ({"rope_scaling": None}, 4096, 4096),
    # Qwen3's card: YaRN of factor 4 over 32,768
    (
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}},
        40_960,
        131_072,
    ),
    ({"rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}}, 163_840, 163_840),
    ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 16_384, 65_536),  # deepseek-coder-33b
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, 4096, 8192),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 131_072, 131_072),
    ({"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, 131_072, 131_072),
    ({"model_type": "gemma3_text", "rope_scaling": {"rope_type": "linear", "factor": 8.0}}, 131_072, 131_072),
    ({"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 2.0}, "sliding": {}}}, 8192, 16_384),
    ({"rope_scaling": {"type": "yarn", "factor": "4"}}, 8192, 8192),
]


@pytest.mark.parametrize(("config", "stated", "longest"), CASES)
def test_the_longest_context(config: dict[str, Any], stated: int, longest: int) -> None:
    assert longest_context(config, stated) == longest
