"""Charts as files: every number in its place in the SVG, plain text, a picture where cairosvg is there."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import msgspec
import pytest

from engine.errors import OptionError
from engine.measure.kinds.batch import BatchResult
from engine.measure.kinds.benchmark import BenchmarkResult, BenchmarkRow
from tests.records import benchmark_row, machine
from tests.tui.live.test_predict import INFO, batch_row
from tui.charts.chart import Axis, Chart, Level, Series
from tui.charts.chart_file import as_svg, as_text, check_plot_path, render
from tui.charts.plots import batch_figure, benchmark_figure
from tui.live.predict import predicted_batches

SVG = "{http://www.w3.org/2000/svg}"


ROWS = tuple(
    benchmark_row(*row, low=0.9, high=1.1)
    for row in ((10, 0.00325, 0.0054), (100, 0.0037, 0.0129), (1000, 0.0096, 0.221))
)
MACHINE = machine("Some <CPU> & co")
RESULT = BenchmarkResult(
    model="two & layers", new_tokens=40, repeats=5, warmup=1, rows=ROWS, machine=MACHINE, notes=("A note.",)
)


def latency(rows: tuple[BenchmarkRow, ...]) -> Chart:
    return benchmark_figure(msgspec.structs.replace(RESULT, rows=rows))


def elements(svg: str | bytes, name: str) -> list[ET.Element]:
    return list(ET.fromstring(svg).iter(f"{SVG}{name}"))


def points(svg: str) -> list[list[tuple[float, float]]]:
    """Pixels of the polylines: with the cache, without."""
    lines = [line.attrib["points"].split() for line in elements(svg, "polyline")]
    return [[tuple(map(float, p.split(","))) for p in line] for line in lines]  # type: ignore[misc]


def test_svg_places_every_median_on_a_logarithmic_scale() -> None:
    svg = as_svg(latency(ROWS))
    cached, without = points(svg)
    xs = [x for x, _ in cached]
    assert xs == [x for x, _ in without]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)  # 10, 100, 1000: equal steps
    bottom, height = 460 - 92, 460 - 92 - 62
    for line, times in ((without, (0.0054, 0.0129, 0.221)), (cached, (0.00325, 0.0037, 0.0096))):
        for (_, y), seconds in zip(line, times, strict=True):
            share = (bottom - y) / height
            assert 0.9 * 0.00325 * (1.1 * 0.221 / (0.9 * 0.00325)) ** share == pytest.approx(seconds, rel=2e-3)
    texts = {element.text for element in elements(svg, "text")}
    assert {"prompt, tokens, logarithmic", "time, ms, logarithmic", "with cache", "10", "1,000"} <= texts


def test_svg_has_a_bar_from_the_least_to_the_greatest_time() -> None:
    lines = [
        {k: float(v) for k, v in e.attrib.items() if k in ("x1", "x2", "y1", "y2")}
        for e in elements(as_svg(latency(ROWS)), "line")
    ]
    cached, _ = points(as_svg(latency(ROWS)))
    for x, y in cached:
        bars = [line for line in lines if line["x1"] == line["x2"] == x and line["y1"] > y > line["y2"]]
        assert len(bars) == 1


def test_svg_on_linear_scales_starts_at_zero_and_keeps_inside() -> None:
    chart = Chart(
        title="t",
        x=Axis(title="x"),
        y=Axis(title="y", from_zero=True),
        series=(Series(label="s", symbol="●", points=((10, 2.0), (100, 4.0), (1000, 8.0))),),
        levels=(Level(label="here", value=4.0),),
    )
    ((a, b, c),) = points(as_svg(chart))
    assert (b[0] - a[0]) / (c[0] - a[0]) == pytest.approx(90 / 990, abs=1e-3)
    zero = 460 - 92
    assert (zero - a[1]) / (zero - c[1]) == pytest.approx(1 / 4, abs=1e-3)
    levels = [e for e in elements(as_svg(chart), "line") if e.get("stroke-dasharray")]
    assert {float(levels[0].attrib["y1"]), float(levels[0].attrib["y2"])} == {b[1]}
    for x, y in (a, b, c):
        assert 92 <= x <= 760 - 24
        assert 62 <= y <= zero


def test_svg_escapes_names_and_draws_one_row_and_unordered_rows() -> None:
    texts = [element.text or "" for element in elements(render(Path("x.SVG"), benchmark_figure(RESULT)), "text")]
    assert any(text.startswith("two & layers, float32; medians of 5 repeats") for text in texts)
    assert any(text.startswith("Some <CPU> & co, 1 thread") for text in texts)
    assert len(points(as_svg(latency(ROWS[:1])))[0]) == 1
    assert as_svg(latency(ROWS[::-1])) == as_svg(latency(ROWS))
    assert "rows appear here" in as_svg(latency(()))


def test_text_plot_is_plain_and_complete() -> None:
    text = as_text(latency(ROWS))
    assert "\x1b" not in text
    lines = text.splitlines()
    assert lines[0] == "Time for a prompt and 40 new tokens"
    assert lines[1] == "time, ms ↑  o with cache  x without"
    assert max(map(len, lines)) <= 78
    body = "\n".join(lines[2:-5])
    assert body.count("x") == 3
    assert body.count("o") == 3
    assert re.search(r"10 +.*100 +.*1,000", lines[-4])
    assert lines[-2].startswith("two & layers, float32; medians of 5 repeats, bars from minimum to maximum")
    assert as_text(latency(ROWS)) == text  # no state is left in plotext


def test_batches_are_drawn_against_a_plain_line_of_what_is_predicted() -> None:
    rows = (batch_row(1, 0.010), batch_row(2, 0.0125), batch_row(8, 0.020))
    result = BatchResult(
        model="m", context=64, new_tokens=16, repeats=5, ragged=True, rows=rows, prefill_tokens=256,
        prefill_s=0.256, machine=MACHINE,
    )  # fmt: skip
    predicted = predicted_batches(INFO, rows, prefill_tokens=256, prefill_s=0.256)
    assert predicted is not None
    svg = as_svg(batch_figure(result, predicted))
    line, measured = points(svg)
    assert [x for x, _ in line] == [x for x, _ in measured]
    (x1, _), (x2, _), (x8, y8) = measured
    assert (x8 - x1) / (x2 - x1) == pytest.approx(3, abs=0.01)  # 1, 2, 8 on a scale of doublings
    assert (y8 > line[2][1]) == (predicted.tokens_per_s[2] > 400)
    assert len(elements(svg, "circle")) == 4  # three measured, one in the legend
    assert "· predicted  o measured" in as_text(batch_figure(result, predicted))
    assert "predicted" not in as_text(batch_figure(result, None))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x.gif", "the name of a plot must end in .svg, .png, .txt, not x.gif"),
        ("x.png", "needs cairosvg: pip install"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_runs(
    name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cairosvg", None)
    with pytest.raises(OptionError, match=message):
        check_plot_path(Path(name))


def test_png_is_a_picture() -> None:
    pytest.importorskip("cairosvg", exc_type=ImportError)
    assert render(Path("x.png"), benchmark_figure(RESULT)).startswith(b"\x89PNG\r\n")
