"""The machine's rates: of the right size, measured on what the model has, never for long."""

import math
import time

import pytest
import torch

from engine.measure import rates as module
from engine.measure.rates import Rates, each_flops, layer_flops, prefill_chunk, probe
from engine.model.decoder import Decoder
from engine.model.made_weights import random_weights
from engine.process.events import Loaded
from engine.process.service import Service
from engine.records import Load
from engine.weights.checkpoint import load_checkpoint
from engine.weights.formats import FormatMaker, linear_layers
from tests.engine.models import decoder as tiny
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


@pytest.mark.parametrize("name", ["llama", "experts", "qwen2"])
def test_flops_of_a_layer_are_those_of_its_matrices(name: str) -> None:
    """Counted by hand: q, k, v, o and three of the MLP, or of the experts that a token goes to."""
    model = tiny(name)
    attention = 2 * 16 * (24 + 12 + 12 + 24)
    expected = attention + 2 * 3 * 16 * 24
    if name == "experts":  # one layer of two: two experts of 8, and the router; only a share of the router is counted
        expected = attention + (2 * 3 * 16 * 24 + 2 * (2 * 3 * 16 * 8)) / 2
    assert layer_flops(model.config) == pytest.approx(expected, rel=0.06)


def test_a_prompt_is_cut_where_a_layer_would_take_long() -> None:
    model = tiny("llama")
    each = layer_flops(model.config)

    def chunk(flops_per_s: float) -> int | None:
        return prefill_chunk(model, Rates(read_bytes_per_s=1.0, matmul_flops_per_s=flops_per_s))

    assert chunk(each * 10_000) == 1000  # a tenth of a second
    assert chunk(each) == 128  # shorter ones would read the weights too often
    assert chunk(each * 1e9) == 4096
    assert prefill_chunk(model, None) is None
