"""calc's formulas against the engine's tensors: parameters and cache bytes of every model both know.

The two packages parse configs apart and import nothing from each other: that they agree is the proof.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calc.errors import CalcError
from calc.fit.memory import memory_report
from calc.model.cache import request_term
from calc.model.count import parameters
from calc.model.parts import Mlp, Norm
from calc.model.spec import ModelSpec, uniform
from calc.model.storage import FORMATS, StorageFormat
from calc.model.study import Study
from calc.sources import load_model
from calc.sources.catalog import manual_device
from engine.errors import EngineError
from engine.families.registry import config_from_hf
from engine.model.cache_kinds import KVCache
from engine.model.config import ModelConfig
from engine.model.made_weights import empty_weights
from engine.model.shapes import n_parameters
from tests.engine.models import PLAIN_VARIANTS as VARIANTS
from tests.engine.models import llama_config
from tests.examples import examples

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT.parent / "shared" / "data" / "configs"
BUNDLED = ROOT / "assets" / "model" / "config.json"
DTYPES = {
    torch.float64: StorageFormat("float64", 1, 8),
    torch.float32: FORMATS["fp32"],
    torch.bfloat16: FORMATS["bf16"],
    torch.float16: FORMATS["fp16"],
}
SMALL: dict[str, Any] = {
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "hidden_size": 48,
    "intermediate_size": 100,
    "vocab_size": 321,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama-biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama-tied": {"model_type": "llama", "tie_word_embeddings": True},
    "llama-head-dim": {"model_type": "llama", "head_dim": 20},
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 16},
}


def both(document: dict[str, Any], folder: Path) -> tuple[ModelSpec, ModelConfig]:
    """One config.json as each package reads it."""
    file = folder / "config.json"
    file.write_text(json.dumps(document), encoding="utf-8")
    return load_model(str(file)), config_from_hf(document)


UNREAD_POSITIONS = {"opt": 2}
"""Rows of a stored table of positions that no token reads: the engine leaves them out, calc counts what is stored."""


def tensors(config: ModelConfig) -> int:
    """Elements of all weights, on the meta device. Biases of a router's choice are buffers and no parameters."""
    return sum(tensor.numel() for name, tensor in empty_weights(config).items() if "e_score_correction" not in name)


def plain_spec(config: ModelConfig) -> ModelSpec:
    """The engine's config as calc's spec, field by field. No window: the engine's cache keeps every token."""
    same = ("n_layers", "n_heads", "n_kv_heads", "head_dim", "hidden_size", "intermediate_size", "vocab_size")
    switches = ("qkv_bias", "o_bias", "mlp_bias", "head_bias", "qk_norm", "tied")
    return uniform(
        name="both",
        mlp=Mlp.GATED if config.gated_mlp else Mlp.PLAIN,
        norm=Norm.LAYER if config.norm == "layernorm" else Norm.RMS,
        n_learned_positions=config.max_positions if config.positions == "learned" else 0,
        **{name: getattr(config, name) for name in (*same, *switches)},
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_of_a_small_config(family: str, tmp_path: Path) -> None:
    spec, config = both(SMALL | FAMILIES[family], tmp_path)
    assert parameters(spec).total == n_parameters(config) == tensors(config)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cache_bytes_of_a_small_config(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    spec, config = both(SMALL | FAMILIES[family], tmp_path)
    cache = KVCache(config, 37, batch_size=3, dtype=dtype)
    report = memory_report(Study(model=spec, device=manual_device(10**9), context=37, kv_format=DTYPES[dtype]))
    assert 3 * report.kv_bytes_per_request == cache.nbytes
    assert 3 * report.kv_bytes_per_token == cache.bytes_per_token


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_engines_own_variants(variant: str) -> None:
    config = llama_config(**VARIANTS[variant])
    spec = plain_spec(config)
    assert parameters(spec).total == tensors(config)
    cache = KVCache(config, 11, dtype=torch.bfloat16)
    assert request_term(spec, FORMATS["bf16"], 11).value == cache.nbytes


@examples(40)
@given(data=st.data())
def test_any_plain_decoder(data: st.DataObject) -> None:
    size = st.integers(1, 40)
    n_kv_heads, head_dim = data.draw(st.integers(1, 5)), 2 * data.draw(st.integers(1, 8))
    config = llama_config(
        n_layers=data.draw(st.integers(1, 4)),
        n_kv_heads=n_kv_heads,
        n_heads=n_kv_heads * data.draw(st.integers(1, 4)),
        head_dim=head_dim,
        attention_scale=1 / math.sqrt(head_dim),
        norm=data.draw(st.sampled_from(["layernorm", "rmsnorm"])),
        positions=data.draw(st.sampled_from(["learned", "rope"])),
        **{name: data.draw(size) for name in ("hidden_size", "intermediate_size", "vocab_size", "max_positions")},
        **{
            name: data.draw(st.booleans())
            for name in ("gated_mlp", "qkv_bias", "o_bias", "mlp_bias", "head_bias", "qk_norm", "tied")
        },
    )
    spec, context = plain_spec(config), data.draw(st.integers(1, 50))
    assert parameters(spec).total == tensors(config)
    cache = KVCache(config, context, batch_size=2, dtype=torch.float32)
    assert 2 * request_term(spec, FORMATS["fp32"], context).value == cache.nbytes


def test_the_bundled_model() -> None:
    config = config_from_hf(json.loads(BUNDLED.read_text(encoding="utf-8")))
    assert parameters(load_model(str(BUNDLED))).total == tensors(config)


@pytest.mark.skipif(not CONFIGS.is_dir(), reason="the published configs are not here")
def test_published_configs_that_the_engine_can_run() -> None:
    compared, refused = 0, []
    for file in sorted(CONFIGS.glob("*.json")):
        try:
            document = json.loads(file.read_text())
            config, spec = config_from_hf(document), load_model(str(file))
        except (EngineError, CalcError) as error:
            refused.append(f"{file.stem}: {error}")
            continue
        unread = UNREAD_POSITIONS.get(document.get("model_type"), 0) * config.hidden_size
        assert parameters(spec).total == tensors(config) + unread, file.stem
        elements = 2 * config.n_layers * config.n_kv_heads * config.head_dim
        # The cache of layers that are alike keeps every token; the others have tests of their own.
        if spec.uniform and not spec.window and config.latent is None:
            assert request_term(spec, FORMATS["bf16"], 1000).value == 2000 * elements, file.stem
        compared += 1
    assert compared >= 15, refused
