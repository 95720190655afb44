"""A simulated load as plots, tables and sentences."""

from __future__ import annotations

from functools import cache
from typing import Any

from calc.commands.render import as_text
from tui.charts.chart_text import draw
from tui.live.load_worker import answers
from tui.views.load import course_chart, most_sentence, rate_chart, rate_sentence, rates_table, times_table

LIMITS = {"ttft": 0.5, "tpot": 0.012}


@cache
def said() -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The runs, and where the limits break."""
    words = ["--device", "h100-sxm", "--requests", "150", "--limit", "ttft=500ms,tpot=12ms"]
    found = list(answers(words))
    return [one["run"] for one in found if "run" in one], next(one["found"] for one in found if "found" in one)


def test_rates_are_rows_and_the_highest_that_keeps_the_limits_is_marked() -> None:
    runs, found = said()
    table = rates_table(sorted(runs, key=lambda run: run["rate"]), found["value"])
    text = as_text(table, width=None)
    assert text.count("◂") == 1
    marked = next(line for line in text.splitlines() if "◂" in line)
    assert marked.rstrip().endswith("met")
    assert "not kept" not in marked
    assert [row.struck for row in table.rows].count(True) == 2  # at the full load and above it


def test_the_course_has_three_lines_and_the_rates_have_four_with_limits() -> None:
    runs, _ = said()
    text = draw(course_chart(runs[6]), width=80, height=20, marker="dot")
    assert all(label in text for label in ("running", "waiting", "cache used, %", "time, s"))
    chart = rate_chart(runs, limits=LIMITS)
    assert [series.label for series in chart.series] == ["TTFT p99", "TTFT p50", "TPOT p99", "TPOT p50"]
    assert [level.label for level in chart.levels] == ["TTFT 500 ms", "TPOT 12.0 ms"]
    assert [x for x, _ in chart.series[0].points] == sorted(run["rate"] for run in runs)
    assert "nothing has run" in draw(course_chart(None), width=60, height=12)
    assert "no rate was simulated" in draw(rate_chart([]), width=60, height=12)


def test_percentiles_of_one_rate() -> None:
    runs, _ = said()
    table = times_table(runs[2])
    assert table.title == f"Times at {runs[2]['rate']:.3g} per second"
    assert [row.cells[0] for row in table.rows] == ["TTFT", "TPOT", "End to end", "In the queue"]
    assert times_table(None).rows == ()


def test_sentences_say_where_p99_breaks() -> None:
    runs, found = said()
    assert most_sentence(found, LIMITS).startswith("p99 meets TTFT 500 ms and TPOT 12.0 ms up to ")
    assert most_sentence(found, LIMITS).endswith("beyond that, TPOT is exceeded.")
    assert most_sentence(None, {}) == "Set limits to see the rate at which p99 exceeds them."
    assert most_sentence(None, LIMITS) == ""
    nothing = {"value": None, "above": 0.1, "breaks_above": ["ttft"]}
    assert "even a single request does not meet TTFT" in most_sentence(nothing, LIMITS)
    assert "up to the full load, 3 requests" in most_sentence({"value": 3.0, "above": None, "breaks_above": []}, LIMITS)
    assert "never drains" in rate_sentence(runs[len(runs) - 2])  # 1.1 of the full load
    assert "never drains" not in rate_sentence(runs[0])
