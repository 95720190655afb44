"""Predictions from fed-in times of a model's own operators: interpolation by hand, chunks, reasons."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.measure.kinds.batch import Batch
from engine.measure.kinds.benchmark import PREDICTED_KEYS
from engine.measure.own import OwnTimes, PromptTime, RowsTime, StepTime
from engine.process.events import Generate
from tests.records import TWO_LAYER, batch_row, benchmark_row
from tui.live.own_times import (
    basis,
    beyond,
    generation_s,
    interpolated,
    parts,
    pass_s,
    power_law,
    prompt_s,
    run_s,
    step_s,
    why,
)
from tui.live.predict import ROOFLINE, batches_of_own, predicted_batches
from tui.live.run_times import own_request, run_times
from tui.live.sweep_times import predicted_sweep, row_keys


def steps(*points: tuple[int, int, float]) -> tuple[StepTime, ...]:
    return tuple(StepTime(batch=b, context=n, seconds=s) for b, n, s in points)


def prompts(*points: tuple[int, int, float]) -> tuple[PromptTime, ...]:
    return tuple(PromptTime(tokens=t, past=p, seconds=s) for t, p, s in points)


OWN = OwnTimes(
    compiled=False, max_rows=None, threads=1, n_layers=10, layers_timed=10, chunk=None,
    steps=steps((1, 32, 0.010), (1, 1032, 0.020), (16, 32, 0.040), (16, 532, 0.090)),
    prompts=prompts((32, 0, 0.020), (128, 0, 0.080), (512, 0, 0.640)),
)  # fmt: skip
COMPILED = msgspec.structs.replace(OWN, compiled=True, max_rows=16)


def test_steps_by_hand() -> None:
    """Linear in context (10 us per token at one row, 100 at sixteen), then in rows: 1 + 7/15 of the way at 8."""
    assert step_s(OWN, 1, 32) == pytest.approx(0.010)
    assert step_s(OWN, 1, 532) == pytest.approx(0.015)
    assert step_s(OWN, 1, 2032) == pytest.approx(0.030)  # beyond what was measured, on the same line
    assert step_s(OWN, 16, 132) == pytest.approx(0.050)
    assert step_s(OWN, 8, 132) == pytest.approx(0.011 + (0.050 - 0.011) * 7 / 15)
    assert step_s(OWN, 31, 32) == pytest.approx(0.070)  # two lines of 15 rows on from 10 ms
    assert step_s(COMPILED, 17, 32) is None  # runs layer by layer, which was not timed
    assert step_s(msgspec.structs.replace(OWN, steps=()), 1, 32) is None


def test_noise_never_makes_more_context_cheaper() -> None:
    noisy = msgspec.structs.replace(OWN, steps=steps((1, 32, 0.011), (1, 1032, 0.010)))
    assert step_s(noisy, 1, 5000) == pytest.approx(0.011)


def test_prompts_by_hand() -> None:
    """Proportional from 32 to 128 tokens; from 128 to 512 eight times the time in four times the tokens: n^1.5."""
    assert prompt_s(OWN, 64) == pytest.approx(0.040)
    assert prompt_s(OWN, 256) == pytest.approx(0.080 * 2**1.5)
    assert prompt_s(OWN, 1024) == pytest.approx(0.640 * 2**1.5)
    assert prompt_s(OWN, 16) == pytest.approx(0.010)
    assert prompt_s(OWN, 0) is None
    assert prompt_s(msgspec.structs.replace(OWN, prompts=()), 5) is None


def test_later_chunks_take_longer_by_what_they_look_back_on() -> None:
    """Chunks of 128: 80 ms for the first, 16 and 32 ms more with 512 and 1,024 tokens before them."""
    chunked = msgspec.structs.replace(
        OWN, chunk=128, prompts=prompts((32, 0, 0.020), (128, 0, 0.080), (128, 512, 0.096), (128, 1024, 0.112))
    )
    assert pass_s(chunked, 128, past=768) == pytest.approx(0.104)
    assert pass_s(chunked, 128, past=128) == pytest.approx(0.084)
    assert pass_s(chunked, 64, past=512) == pytest.approx(0.048)  # half a chunk: half of both
    assert prompt_s(chunked, 300) == pytest.approx(0.080 + 0.084 + pass_s(chunked, 44, past=256))
    one = msgspec.structs.replace(chunked, prompts=prompts((128, 0, 0.080), (128, 512, 0.096)))
    assert pass_s(one, 128, past=256) == pytest.approx(0.088)


def test_runs_are_a_prompt_and_steps_or_everything_again() -> None:
    """Prompt of 32, three new tokens: 20 ms and two steps at 33.5 tokens; without the cache prompts of 32, 33, 34."""
    each = 0.010 + 0.00001 * 1.5
    assert generation_s(OWN, 32, 3) == pytest.approx((0.020, each))
    assert run_s(OWN, 32, 3, cached=True) == pytest.approx(0.020 + 2 * each)
    assert run_s(OWN, 32, 3, cached=False) == pytest.approx(0.020 * (32 + 33 + 34) / 32)
    assert run_s(msgspec.structs.replace(OWN, prompts=()), 32, 3, cached=False) is None


@given(x=st.floats(0.5, 5000), y=st.floats(0.5, 5000))
def test_more_tokens_never_take_less(x: float, y: float) -> None:
    low, high = sorted((x, y))
    points = [(32.0, 0.020), (128.0, 0.080), (512.0, 0.640)]
    assert power_law(points, low) <= power_law(points, high) * (1 + 1e-9)


def test_a_single_point_is_all_there_is_to_say() -> None:
    assert interpolated([(4.0, 7.0)], 100) == 7.0
    assert power_law([(4.0, 8.0)], 2) == 4.0
    with pytest.raises(ValueError, match="no prompt was measured"):
        power_law([], 2)


def test_the_parts_of_a_step_by_hand() -> None:
    """10 ms at 32 tokens: 6 linear, 1 head, 0.32 attention (10 us per token), so 2.68 ms in 10 layers are overhead."""
    timed = msgspec.structs.replace(
        OWN, linears=(RowsTime(rows=1, seconds=0.006),), heads=(RowsTime(rows=1, seconds=0.001),)
    )
    found = parts(timed)
    assert found is not None
    assert (found.linears_s, found.head_s, found.attention_s) == pytest.approx((0.006, 0.001, 0.00032))
    assert found.overhead_per_layer_s == pytest.approx(0.000268)
    assert parts(OWN) is None


def test_a_difference_has_a_reason() -> None:
    assert why(OWN, 0.0114, 0.010) == ""
    assert why(OWN, None, 0.010) == why(OWN, 0.01, None) == ""
    assert why(OWN, 0.012, 0.010) == ""
    assert why(OWN, 0.012, 0.010, "", "a known one") == "a known one"
    busy = msgspec.structs.replace(OWN, slowdown=2.0)
    assert why(busy, 0.030, 0.010) == "other processes had 50 % of the cores: 20.0 ms expected with that"
    assert why(busy, 0.030, 0.010, "a known one").startswith("a known one; other processes")
    waiting = msgspec.structs.replace(busy, threads=2)
    assert why(waiting, 0.030, 0.010) == (
        "other processes had 50 % of the cores, and 2 threads wait for each other: 20.0 ms expected with that"
    )
    assert "Meanwhile everything took 2.0 times as long." in basis(busy)
    assert "3 of 10 layers" in basis(msgspec.structs.replace(OWN, layers_timed=3))


def test_what_was_extrapolated_is_said() -> None:
    assert beyond(OWN, batch=16, context=500, prompt=512) == ""
    assert beyond(OWN, batch=32) == "steps were only timed up to 16 rows"
    assert beyond(OWN, batch=1, context=2000) == "steps were only timed up to 1,032 tokens"
    assert beyond(OWN, prompt=2000) == "prompts were only timed up to 512 tokens"


def test_batches_use_the_padded_length_in_layers_and_their_own_in_the_compiled_step() -> None:
    rows = [batch_row(1, 0.010, 32.0), batch_row(16, 0.080, 132.0), batch_row(32, 0.2, 132.0)]
    rooflines = predicted_batches(TWO_LAYER, rows, prefill_tokens=256, prefill_s=0.256)
    assert rooflines is not None
    layers = batches_of_own(rooflines, rows, OWN, longest=232)
    assert layers.tokens_per_s[1] == pytest.approx(16 / 0.060)
    assert layers.why[1] == ""
    assert layers.why[2].startswith("steps were only timed up to 16 rows")
    compiled = batches_of_own(rooflines, rows, COMPILED, longest=232)
    assert compiled.tokens_per_s[1] == pytest.approx(16 / 0.050)
    assert compiled.tokens_per_s[2] == rooflines.tokens_per_s[2]
    assert compiled.why[2] == ROOFLINE
    assert compiled.basis.startswith("Predicted from the times of the compiled step on an idle machine")
    assert Batch().context == 64


def test_a_sweep_is_predicted_both_ways() -> None:
    row = benchmark_row(32, 0.041, 0.3, tpot_s=0.01)
    sweep = predicted_sweep([row], OWN, new_tokens=3)
    expected = sweep.lengths[32]
    assert expected.with_cache_s == run_s(OWN, 32, 3, cached=True)
    assert expected.without_cache_s == run_s(OWN, 32, 3, cached=False)
    assert expected.prefill_s == pytest.approx(0.020)
    assert expected.why == ""  # 0.3 s without the cache, where 62 ms are predicted
    keys = row_keys(row, expected)
    assert tuple(keys) == PREDICTED_KEYS
    assert keys["with_cache_ratio"] == pytest.approx(0.041 / (0.020 + 2 * (0.010 + 0.000015)))
    assert sweep.basis == basis(OWN)


def test_a_run_says_what_it_was_not_timed_with() -> None:
    times = run_times(OWN, "int8", prompt_tokens=32, new_tokens=3)
    assert times is not None
    assert times.ttft_s == pytest.approx(0.020)
    assert times.why(0.020, 0.010) == ""
    assert "full cache" in times.why(0.020, 0.030)
    long = run_times(OWN, "full", prompt_tokens=512, new_tokens=1000)
    assert long is not None
    assert long.why(0.64, 0.05) == "steps were only timed up to 1,032 tokens"
    assert long.why(1.0, 0.05) == "steps were only timed up to 1,032 tokens"
    again = run_times(OWN, "full", prompt_tokens=33, new_tokens=3, reused_tokens=32)
    assert again is not None
    assert again.ttft_s == pytest.approx(step_s(OWN, 1, 33) or 0)  # one token after 32 is a step
    assert run_times(None, "full", prompt_tokens=32, new_tokens=3) is None
    asked = own_request(Generate(prompt="x", model="m", dtype="int8", threads=2), prompt_tokens=9, new_tokens=4)
    assert asked.budget_s == 3.0
    assert (asked.model, asked.dtype, asked.threads) == ("m", "int8", 2)
    assert (asked.needs.rows, asked.needs.context, asked.needs.prompt) == (1, 14, 9)
