"""What calc predicts against what the engine allocates, for every family: parameters and cache bytes.

Each package reads the same config.json with a reader of its own. calc counts a layer with a window up to the
window and a latent layer by its compressed vector; those are the engine's "window" and latent caches, byte for byte.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from calc.kv_cache import request_term
from calc.params import parameters
from calc.sources import load_model
from calc.storage import FORMATS
from engine.cache import Int8Cache, cache_bytes, make_cache
from engine.config import ModelConfig
from engine.families.configs import config_from_hf
from engine.model import empty_weights

SMALL: dict[str, Any] = {
    "num_hidden_layers": 7,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "hidden_size": 48,
    "intermediate_size": 100,
    "vocab_size": 321,
    "max_position_embeddings": 256,
}
GEMMA = {"head_dim": 20, "sliding_window": 16, "query_pre_attn_scalar": 20, "tie_word_embeddings": True}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 12}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "mistral": {"model_type": "mistral", "sliding_window": 16, "head_dim": 10},
    "qwen2": {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 3},
    "qwen3": {"model_type": "qwen3", "head_dim": 16},
    "smollm3": {"model_type": "smollm3"},
    "gemma2": {"model_type": "gemma2"} | GEMMA,
    "gemma3": {"model_type": "gemma3_text"} | GEMMA,
    "gpt2": {"model_type": "gpt2", "n_embd": 48, "n_head": 6, "n_layer": 7, "n_positions": 256, "vocab_size": 321},
    "phi3": {"model_type": "phi3", "sliding_window": 16, "rope_scaling": None},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3-moe": {"model_type": "qwen3_moe", "head_dim": 16, "num_experts": 5, "mlp_only_layers": [1]} | EXPERTS,
    "deepseek-v2-lite": {
        "model_type": "deepseek_v2",
        "q_lora_rank": None,
        "kv_lora_rank": 24,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 10,
        "v_head_dim": 12,
        "num_key_value_heads": 6,
        "n_routed_experts": 5,
        "n_shared_experts": 2,
        "first_k_dense_replace": 1,
    }
    | EXPERTS,
}


def both(family: str, folder: Path) -> tuple[Any, ModelConfig]:
    document = FAMILIES[family] if family == "gpt2" else SMALL | FAMILIES[family]  # GPT-2 has keys of its own
    file = folder / "config.json"
    file.write_text(json.dumps(document), encoding="utf-8")
    return load_model(str(file)), config_from_hf(document)


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters(family: str, tmp_path: Path) -> None:
    spec, config = both(family, tmp_path)
    assert parameters(spec).total == sum(tensor.numel() for tensor in empty_weights(config).values())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("context", [5, 16, 100])
def test_cache_bytes(family: str, context: int, tmp_path: Path) -> None:
    """Below, at and beyond the window, three rows, 16 bits."""
    spec, config = both(family, tmp_path)
    cache = make_cache(config, context, kind="window", batch_size=3, dtype=torch.bfloat16)
    predicted = 3 * request_term(spec, FORMATS["bf16"], context).value
    assert cache.nbytes == predicted
    assert cache_bytes(config, context, batch_size=3, dtype=torch.bfloat16, kind="window") == predicted
    cache.advance(context)
    assert cache.used_bytes == predicted


def test_the_int8_cache_is_one_byte_a_value_and_four_for_the_scale_of_a_head() -> None:
    config = config_from_hf(SMALL | FAMILIES["llama"])
    cache = Int8Cache(config, 37, batch_size=3)
    assert cache.nbytes == 3 * 37 * 7 * 2 * 2 * (8 + 4)
    assert cache_bytes(config, 37, batch_size=3, dtype=torch.float32, kind="int8") == cache.nbytes
