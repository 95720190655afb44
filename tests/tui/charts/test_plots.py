"""Plots: what is drawn where, what is said instead of drawn, and that a build leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from math import log10
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calc.intensity.attention import Attention
from calc.intensity.study import IntensityQuery, IntensityReport, intensity_report
from calc.sources.catalog import find_device, find_model, manual_device
from engine.measure.kinds.benchmark import BenchmarkRow
from tests.examples import examples
from tests.records import benchmark_row
from tests.tui.live.test_predict import INFO, batch_row
from tui.charts import MARKERS, Marker
from tui.charts.chart import Axis, Chart, Level, Scale, Series, ticks
from tui.charts.chart_text import Colours, draw
from tui.charts.plots import (
    batch_decode_chart,
    benchmark_chart,
    decode_chart,
    flash_chart,
    latency_chart,
    prefill_chart,
)
from tui.live.predict import predicted_batches

COLOURS = Colours(axes=(1, 1, 1), text=(2, 2, 2), line=(3, 3, 3), series=((4, 4, 4), (5, 5, 5), (6, 6, 6)))


def report(attention: Attention = Attention.STANDARD, device: str = "h100-sxm") -> IntensityReport:
    return intensity_report(
        IntensityQuery(model=find_model("llama-3-8b"), device=find_device(device), attention=attention)
    )


def chart(points: tuple[tuple[float, float], ...], **changes: object) -> Chart:
    axes = {"x": Axis(title="x, steps"), "y": Axis(title="y, units", from_zero=True)}
    series = (Series(label="points", symbol="●", points=points),)
    return Chart(**{"title": "Title", "series": series, **axes, **changes})  # type: ignore[arg-type]


def row_of(text: str, symbol: str) -> list[int]:
    return [i for i, line in enumerate(text.split("\n")) if symbol in line]


@pytest.mark.parametrize("size", [(29, 20), (80, 7), (1, 1)])
def test_too_small_says_so_in_one_line(size: tuple[int, int]) -> None:
    text = draw(chart(((0, 0), (1, 1))), width=size[0], height=size[1])
    assert "\n" not in text
    assert len(text) <= max(size[0], 1)
    assert text == "Title: a plot needs 30 x 8 characters"[: size[0] - 1] + "…" or "30 x 8" in text


def test_no_points_says_what_is_waited_for() -> None:
    assert "no run yet" in draw(latency_chart(None, ()), width=60, height=12)
    assert "second token" in draw(latency_chart(0, (5,)), width=60, height=12)
    assert "as they are measured" in draw(benchmark_chart(()), width=60, height=12)


@examples(40)
@given(
    width=st.integers(30, 130),
    height=st.integers(8, 45),
    marker=st.sampled_from(MARKERS),
    points=st.lists(st.tuples(st.floats(0.001, 1e7), st.floats(1e-6, 1e9)), min_size=1, max_size=20),
    log=st.booleans(),
)
def test_any_data_fits_its_size(
    width: int, height: int, marker: Marker, points: list[tuple[float, float]], log: bool
) -> None:
    axes = {"x": Axis(title="x", log=log), "y": Axis(title="y", log=log)}
    text = draw(chart(tuple(points), **axes), width=width, height=height, marker=marker)
    lines = text.split("\n")
    assert len(lines) <= height
    assert max(map(len, lines)) <= width


def test_every_point_of_a_series_is_marked() -> None:
    points = tuple((float(i), float(i)) for i in range(8))
    text = draw(chart(points), width=80, height=30)
    assert text.count("●") == 8 + 1  # and the legend


def test_a_higher_value_is_drawn_higher_and_later_further_right() -> None:
    text = draw(chart(((0, 1), (1, 2), (2, 3))), width=60, height=20)
    canvas = [(y, x) for y, line in enumerate(text.split("\n")[2:]) for x, c in enumerate(line) if c == "●"]
    by_column = sorted(canvas, key=lambda cell: cell[1])
    assert [y for y, _ in by_column] == sorted((y for y, _ in canvas), reverse=True)
    assert len({x for _, x in canvas}) == 3


@pytest.mark.parametrize("marker", MARKERS)
def test_a_level_lies_on_the_point_of_its_value(marker: Marker) -> None:
    """Lines, symbols and levels share one grid, so a flat series covers a level of the same value."""
    flat = tuple((float(i), 7.3) for i in range(5))
    level = Level(label="here", value=7.3)
    text = draw(chart((*flat, (5.0, 1.0)), levels=(level,)), width=70, height=25, marker=marker)
    dash, dot = ("-", "o") if marker == "dot" else ("╌", "●")
    body = text.split("\n")[2:]
    (row,) = [i for i, line in enumerate(body) if line.count(dash) > 3]
    assert body[row].count(dot) == 5


def test_without_colours_there_is_no_escape_and_with_them_each_series_has_its_own() -> None:
    plain = draw(prefill_chart(report()), width=80, height=20)
    assert "\x1b" not in plain
    coloured = draw(decode_chart(report()), width=80, height=30, colours=COLOURS)
    for colour in COLOURS.series:
        assert "38;2;{};{};{}m".format(*colour) in coloured


def test_two_builds_give_the_same_text() -> None:
    """plotext 5 fails on a second logarithmic build and shares a figure; ours must not."""
    first = draw(decode_chart(report()), width=90, height=25)
    draw(benchmark_chart((row(10, 0.1, 0.2),)), width=60, height=20)
    assert draw(decode_chart(report()), width=90, height=25) == first


def test_plain_marker_is_ascii_apart_from_axes() -> None:
    text = draw(decode_chart(report()), width=90, height=28, marker="dot")
    drawn = {c for c in text if ord(c) > 127} - set("│┤├┬└─┌·↑→")
    assert drawn == set()


def test_prefill_is_alone_on_linear_axes_with_its_limit_and_what_limits_decoding() -> None:
    built = prefill_chart(report())
    assert (built.x.log, built.y.log, len(built.series)) == (False, False, 1)
    assert [level.label for level in built.levels] == ["limit 64.6"]
    assert built.levels[0].value == pytest.approx(64.625)
    assert built.notes == (
        "decode 0.993: memory limits it (ridge 295)",
        "above this scale: ridge NVIDIA H100 SXM 295",
    )
    assert "decode 0.993: memory limits it" in draw(prefill_chart(report()), width=100, height=20).split("\n")[0]


def test_flash_prefill_has_the_ridge_drawn_and_no_limit() -> None:
    built = prefill_chart(report(Attention.FLASH))
    assert (built.x.log, built.y.log) == (False, False)
    assert [level.label for level in built.levels] == ["ridge NVIDIA H100 SXM 295"]
    assert built.levels[0].value == pytest.approx(989e12 / 3.35e12, rel=0.01)


def test_flash_stands_beside_standard_in_a_chart_of_its_own() -> None:
    built = flash_chart(report(), report(Attention.FLASH))
    assert (built.x.log, built.y.log) == (True, True)
    assert [series.label for series in built.series] == ["standard attention", "FlashAttention"]
    for series, source in zip(built.series, (report(), report(Attention.FLASH)), strict=True):
        assert series.points == tuple((float(p.context), p.intensity) for p in source.prefill_by_context)


def test_common_ridges_stand_in_for_an_unknown_device_and_are_marked() -> None:
    query = IntensityQuery(model=find_model("llama-3-8b"), device=manual_device(80 * 10**9))
    decode, prefill = decode_chart(intensity_report(query)), prefill_chart(intensity_report(query))
    assert [level.label for level in decode.levels] == [
        "ridge of a common A100 80 GB 153",
        "ridge of a common H100 80 GB 295",
    ]
    assert [level.label for level in prefill.levels] == ["limit 64.6", "ridge of a common A100 80 GB 153"]
    assert prefill.notes[0] == "decode 0.993: memory limits it (ridge 153, A100)"
    assert draw(prefill, width=58, height=20).split("\n")[1] == prefill.notes[0]


def test_a_model_of_several_kinds_of_layers_has_one_series_each() -> None:
    model = find_model("deepseek-v3")
    query = IntensityQuery(model=model, device=manual_device(80 * 10**9), attention=Attention.FLASH)
    source = intensity_report(query)
    built = decode_chart(source)
    assert [series.label for series in built.series] == ["attention", "linear layers", "step"]
    assert built.series[0].points[0][1] == source.decode_by_batch[0].attention_intensity > 190
    assert prefill_chart(source).notes[0] == "decode 196: arithmetic limits it (ridge 153, A100)"


def test_decode_series_carry_the_reports_numbers() -> None:
    built, source = decode_chart(report()), report()
    points = {series.label: series.points for series in built.series}
    assert list(points) == ["attention MHA", "attention GQA 4", "linear layers", "step MHA", "step GQA 4"]
    assert points["attention GQA 4"] == tuple(
        (float(p.batch), p.attention_intensity) for p in source.decode_by_batch_grouped
    )
    assert points["step MHA"] == tuple((float(p.batch), p.step_intensity) for p in source.decode_by_batch)
    assert len({series.symbol for series in built.series}) == 5


def test_a_model_without_groups_is_shown_once() -> None:
    query = IntensityQuery(model=find_model("llama-2-7b"), device=find_device("h100-sxm"))
    assert [s.label for s in decode_chart(intensity_report(query)).series] == [
        "attention MHA",
        "linear layers",
        "step MHA",
    ]


def test_latency_is_between_tokens_in_its_own_unit_and_scrolls() -> None:
    times = tuple(2_000_000 * i for i in range(500))
    built = latency_chart(0, times, window=100)
    (series,) = built.series
    assert len(series.points) == 100
    assert series.points[0] == pytest.approx((401.0, 2.0))
    assert series.points[-1] == pytest.approx((500.0, 2.0))
    assert built.y.title == "time per token, ms"
    assert "last 100" in built.title
    assert "median 2.00 ms" in draw(latency_chart(0, times), width=70, height=14)


def row(n: int, fast: float, slow: float) -> BenchmarkRow:
    return benchmark_row(n, fast, slow, prefill_s=fast, kv_cache_bytes=0)


def test_benchmark_has_both_arms_in_one_unit() -> None:
    built = benchmark_chart((row(10, 0.010, 0.020), row(1000, 0.2, 3.0)), new_tokens=40)
    assert built.y.title == "time, s"
    assert [s.label for s in built.series] == ["with cache", "without"]
    assert built.series[0].points == ((10.0, 0.010), (1000.0, 0.2))
    assert built.series[0].spread == ((0.010, 0.010), (0.2, 0.2))
    assert built.series[1].points == ((10.0, 0.020), (1000.0, 3.0))
    assert "40 new tokens" in built.title
    assert benchmark_chart((row(10, 2e-3, 5e-3),)).y.title == "time, ms"


@given(low=st.floats(1e-9, 1e9), decades=st.floats(0.3, 8), count=st.integers(2, 12))
def test_log_ticks_are_few_and_inside(low: float, decades: float, count: int) -> None:
    scale = Scale(log10(low), log10(low) + decades, True)
    found = ticks(scale, count=count)
    assert 0 < len(found) <= max(count, 4) + 1
    assert all(scale.holds(v) for v in found)
    assert found == sorted(set(found))


@given(low=st.floats(-1e6, 1e6), span=st.floats(1e-3, 1e7), count=st.integers(2, 12))
def test_linear_ticks_are_evenly_spaced_round_numbers(low: float, span: float, count: int) -> None:
    found = ticks(Scale(low, low + span, False), count=count)
    assert 2 <= len(found) <= max(count + 1, 5)
    steps = {round(b - a, 9) for a, b in pairwise(found)}
    assert len(steps) <= 1 or max(steps) == pytest.approx(min(steps))
    for step in steps:
        mantissa = step / 10 ** round(log10(step) // 1)
        assert min(abs(mantissa - m) for m in (1, 2, 5, 10)) < 1e-6


@pytest.mark.parametrize("times_ms", [(1.9, 2.3), (4.9, 40.0), (99.0, 101.0), (0.0021, 0.0024)])
@pytest.mark.parametrize("height", [8, 10, 24])
def test_the_axis_of_latencies_has_two_labels_at_every_height(times_ms: tuple[float, float], height: int) -> None:
    moments = [0]
    for i in range(40):
        moments.append(moments[-1] + round(times_ms[i % 2] * 1e6))
    drawn = draw(latency_chart(0, moments), width=50, height=height)
    assert sum("┤" in line for line in drawn.splitlines()) >= 2


def test_doubling_ticks_are_powers_of_two() -> None:
    found = ticks(Scale(log10(64), log10(16384), True), count=5, doubling=True)
    assert found == pytest.approx([64, 256, 1024, 4096, 16384])


def test_batches_are_marked_on_a_scale_of_doublings_and_predicted_as_a_plain_line() -> None:
    rows = [batch_row(4, 0.016), batch_row(1, 0.010), batch_row(2, 0.0125)]
    predicted = predicted_batches(INFO, rows, prefill_tokens=256, prefill_s=1e-6)
    assert predicted is not None
    line, measured = batch_decode_chart(rows, predicted).series
    assert measured.points == ((1.0, 100.0), (2.0, 160.0), (4.0, 250.0))
    assert (measured.symbol, line.symbol) == ("●", "·")
    assert [x for x, _ in line.points] == [1.0, 2.0, 4.0]
    assert [y for _, y in line.points] == [predicted.tokens_per_s[i] for i in (1, 2, 0)]
    text = draw(batch_decode_chart(rows, predicted), width=60, height=20)
    columns = sorted(line.index("●") for line in text.split("\n")[2:] if "●" in line)
    assert len(columns) == 3
    assert abs((columns[1] - columns[0]) - (columns[2] - columns[1])) <= 1
    assert len(batch_decode_chart(rows, None).series) == 1
    assert "as they are measured" in draw(batch_decode_chart((), None), width=60, height=12)


ROOT = Path(__file__).resolve().parents[3]


def test_a_drawing_is_the_same_in_every_process() -> None:
    """plotext holds ticks in a set: labels that make room for each other moved with the seed of hashes."""
    script = (
        "from tui.charts.chart import Axis, Chart, Series\n"
        "from tui.charts.chart_text import draw\n"
        "points = tuple((10.0**k, 10.0**k) for k in (-0.6, 1, 3.53))\n"
        "axis = dict(title='x', log=True, tick=lambda v: f'{v:,.4g}')\n"
        "series = Series(label='s', symbol='o', points=points)\n"
        "chart = Chart(title='t', x=Axis(**axis), y=Axis(**axis), series=(series,))\n"
        "print([draw(chart, width=w, height=15) for w in range(70, 90)])\n"
    )
    drawn = {
        subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            check=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(drawn) == 1
