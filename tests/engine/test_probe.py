"""The machine's rates: of the right size, measured on what the model has, never for long."""

import math
import time

import pytest
import torch

from engine import probe as module
from engine.checkpoint import load_checkpoint
from engine.events import Load, Loaded
from engine.formats import FormatMaker, linear_layers
from engine.model import Decoder, random_weights
from engine.probe import each_flops, probe
from engine.service import Service
from tests.engine.models import llama_config


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
def test_rates_are_finite_and_positive(dtype: str) -> None:
    rates = probe(load_checkpoint(dtype=dtype).decoder)
    assert rates is not None
    assert 1e6 < rates.read_bytes_per_s < 1e14
    assert 1e6 < rates.matmul_flops_per_s < 1e16
    assert math.isfinite(rates.matmul_flops_per_s)


def test_every_matrix_is_counted_once() -> None:
    """FLOPs of one token through all linear layers: twice the weights that are no table, bias or norm."""
    config = llama_config(hidden_size=64, intermediate_size=96, tied=False)
    weights = random_weights(config)
    matrices = sum(w.numel() for name, w in weights.items() if w.dim() == 2 and "embed" not in name)
    for decoder in (Decoder(config, weights), Decoder(config, weights, linear=FormatMaker("int8", weights))):
        assert sum(each_flops(layer) for layer in linear_layers(decoder)) == 2 * matrices  # type: ignore[arg-type]


def test_the_rate_is_bytes_over_the_time_of_the_best_try(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.0, 0.5, 0.5, 0.5, 0.75, 0.75])  # began; two tries of half and a quarter of a second
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(module, "MAX_S", 0.6)
    monkeypatch.setattr(module, "LARGE_BYTES", 1000)
    assert module._bytes_per_s([torch.zeros(1000), torch.zeros(3)]) == 4000 / 0.25


def test_ranks_and_reordered_layers_have_no_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(llama_config(), random_weights(llama_config()))
    monkeypatch.setattr(Decoder, "communication_ns", property(lambda self: 5))
    assert probe(decoder) is None
    monkeypatch.undo()
    monkeypatch.setattr(module, "linear_layers", lambda decoder: iter(()))
    assert probe(decoder) is None


def test_an_odd_number_of_bytes_is_read() -> None:
    """int8 matrices need not fill whole words."""
    module._read(torch.zeros(7, dtype=torch.int8))
    assert module._bytes_per_s([torch.zeros(7, dtype=torch.int8)]) > 0


def test_a_loaded_model_says_its_rates() -> None:
    (*_, last) = Service().answer(Load())
    assert isinstance(last, Loaded)
    assert last.model.read_bytes_per_s is not None
    assert last.model.matmul_flops_per_s is not None
