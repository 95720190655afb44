"""What calc reads off a GGUF file against what the engine runs of it: parameters and cache bytes, by architecture."""

from pathlib import Path

import pytest
import torch

from calc.model.cache import request_term
from calc.model.count import parameters
from calc.model.storage import FORMATS
from calc.sources import load_model
from engine.families.gguf import config_from_gguf
from engine.model.cache_choice import make_cache
from engine.model.shapes import CHOICE_BIAS, n_parameters, parameter_shapes
from engine.weights.gguf import read_gguf
from tests.engine.gguf_conversion import CASES, converted, save_named

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", CASES)
def test_both_read_the_same_from_a_file(name: str, tmp_path: Path) -> None:
    save_named(CASES[name], tmp_path)
    file = converted(tmp_path, CASES[name])
    spec, config = load_model(str(file)), config_from_gguf(read_gguf(file))
    shapes = parameter_shapes(config)
    buffers = sum(shape[0] for name, shape in shapes.items() if name.endswith(CHOICE_BIAS))  # stored, like weights
    in_metadata = sum(shape[0] for name, shape in shapes.items() if ".act_fn." in name)
    counted = n_parameters(config) + (buffers if config.experts and config.experts.scoring == "sigmoid" else 0)
    assert parameters(spec).total == counted - in_metadata
    for context in (5, 90):  # below and beyond the windows
        cache = make_cache(config, context, kind="window", batch_size=1, dtype=torch.bfloat16)
        assert cache.nbytes == request_term(spec, FORMATS["bf16"], context).value
