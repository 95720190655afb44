"""What calc predicts against what the engine allocates, for every family: parameters and cache bytes.

Each package reads the same config.json with a reader of its own. calc counts a layer with a window up to the
window and a latent layer by its compressed vector; those are the engine's "window" and latent caches, byte for byte.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from calc.model.cache import request_term
from calc.model.count import parameters
from calc.model.storage import FORMATS
from calc.sources import load_model
from engine.families.registry import config_from_hf
from engine.model.cache_choice import cache_bytes, make_cache
from engine.model.cache_kinds import Int8Cache
from engine.model.config import ModelConfig
from engine.model.shapes import n_parameters
from tests.engine.hf_configs import FAMILIES, document


def both(family: str, folder: Path) -> tuple[Any, ModelConfig]:
    file = folder / "config.json"
    file.write_text(json.dumps(document(family)), encoding="utf-8")
    return load_model(str(file)), config_from_hf(document(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters(family: str, tmp_path: Path) -> None:
    spec, config = both(family, tmp_path)
    assert parameters(spec).total == n_parameters(config)


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
    config = config_from_hf(document("llama"))
    cache = Int8Cache(config, 37, batch_size=3)
    assert cache.nbytes == 3 * 37 * 7 * 2 * 2 * (8 + 4)
    assert cache_bytes(config, 37, batch_size=3, dtype=torch.float32, kind="int8") == cache.nbytes
