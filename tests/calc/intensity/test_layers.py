"""Layers that are not plain: formulas are their values, limits are where the values go, sums are by loops."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest

from calc.explain.terms import evaluate
from calc.intensity.attention import Attention, Phase
from calc.intensity.layers import is_plain, layers_cost
from calc.intensity.study import IntensityQuery, default_attention, intensity_report
from calc.model.edit import edit
from calc.model.spec import ModelSpec
from calc.sources.catalog import ModelEntry, find_model, models
from calc.step.operators import Pass
from tests.calc.strategies import LLAMA, device
from tests.each import each

LAYERED = [entry for entry in models().values() if not is_plain(entry.sizes)]
NAMES = ("gpt-oss-120b", "deepseek-v3.2", "qwen3.5-35b-a3b", "llama-4-scout", "glm-5.2", "jamba-v0.1", "gemma-4-31b")


def asked(model: ModelSpec, **changes: object) -> IntensityQuery:
    query = IntensityQuery(model=model, device=device(), attention=default_attention(model))
    return replace(query, **changes)


def test_plain_attention_is_that_of_equal_layers_over_the_whole_context() -> None:
    plain = {"llama-3-8b", "qwen3-30b-a3b", "gpt2", "falcon-40b", "command-r"}
    other = {"deepseek-v3", "gpt-oss-20b", "qwen3.5-27b", "mistral-7b-v0.1", "nemotron-h-56b", "llama-4-scout"}
    assert all(is_plain(find_model(name)) for name in plain)
    assert not any(is_plain(find_model(name)) for name in other)
    assert is_plain(edit(LLAMA, n_kv_heads=1))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", Attention)
def test_formulas_are_the_values(name: str, phase: Phase, causal: bool, kind: Attention) -> None:
    query = asked(find_model(name), attention=kind, causal=causal)
    for n in (1, 100, 3000, 20_000):
        cost = layers_cost(query.model, query.work(phase, context=n))
        values = {"n_keys": n}
        assert evaluate(cost.flops_formula, values) == cost.flops
        assert evaluate(cost.bytes_formula, values) == cost.bytes
        assert float(Fraction(evaluate(cost.intensity_formula, values))) == cost.intensity


@each("entry", LAYERED)
def test_limits_are_where_the_values_go(entry: ModelEntry) -> None:
    model = entry.spec
    query = asked(model)
    decode = layers_cost(model, query.work(Phase.DECODE, context=10**10))
    assert decode.limit is not None
    assert decode.intensity == pytest.approx(decode.limit, rel=1e-3)
    prefill = layers_cost(model, query.work(Phase.PREFILL, context=10**4))
    windows_alone = all(m.window is not None for layer in model.layers for m in layer.mixers)
    assert (prefill.limit is None) != windows_alone


def test_deepseek_v3_by_hand() -> None:
    """Absorbed: 128 heads x 2 (576 + 512) FLOPs and 5 of the softmax per token, over 576 x 2 bytes; queries of 576 and
    results of 512 per head besides."""
    report = intensity_report(asked(find_model("deepseek-v3"), context=131_072))
    assert report.layers is not None
    decode = report.layers.decode
    n = 131_072
    assert decode.flops == 61 * 128 * (2 * 576 + 2 * 512 + 5) * n
    assert decode.bytes == 61 * 2 * (576 * n + 128 * (576 + 512))
    assert round(decode.intensity, 1) == 241.9
    assert decode.limit == pytest.approx(128 * 2181 / 1152)
    assert report.decode_by_batch[-1].attention_intensity == decode.intensity


def test_a_decode_step_of_gpt_oss_layer_by_layer_and_head_by_head() -> None:
    model, n = find_model("gpt-oss-20b"), 5000
    flops = moved = 0
    for layer in range(24):
        seen = min(n, 128) if layer % 2 == 0 else n
        for _ in range(8):  # KV heads
            moved += seen * (64 + 64) * 2
            for _ in range(8):  # query heads of each
                flops += seen * (2 * 64 + 2 * 64 + 5)
                moved += (64 + 64) * 2
    report = intensity_report(asked(model, context=n))
    assert (report.shown_decode.flops, report.shown_decode.bytes) == (flops, moved)


def test_standard_attention_moves_scores_too() -> None:
    """S and P are written and read for each of the 128 heads: 4 x 2 bytes per score."""
    model = find_model("deepseek-v3")
    flash, standard = (layers_cost(model, asked(model, attention=kind).work(Phase.DECODE)) for kind in (
        Attention.FLASH, Attention.STANDARD,
    ))  # fmt: skip
    assert standard.flops == flash.flops
    assert standard.bytes - flash.bytes == 61 * 128 * 4 * 1024 * 2


def test_a_window_larger_than_the_context_changes_nothing() -> None:
    model = find_model("mistral-7b-v0.1")
    report = intensity_report(asked(model, context=1000))
    work = Pass(phase=Phase.DECODE, context=1000)
    assert report.shown_decode.bytes == layers_cost(edit(model, n_sliding_layers=0), work).bytes
