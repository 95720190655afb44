"""Rows of the frontier: which limits a batch breaks, what it costs, and what is said of those that wait."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from calc.commands.estimate_options import as_run
from calc.commands.estimate_tables import frontier_table, limits_kept
from calc.commands.frontier import Row, cost_per_million, frontier
from calc.model.storage import FORMATS
from calc.model.study import Policy, Study
from calc.sources.catalog import find_device, find_model
from calc.speed.asked import Asked, Load
from calc.units import format_duration_s

CLOSED = Asked(load=Load.CLOSED, count=1, tp=2)
STUDY = Study(
    model=find_model("llama-3-8b"), device=find_device("h100-sxm"), context=CLOSED.context, policy=Policy.REPLICATED
)


def rows(*batches: int, asked: Asked = CLOSED, limits: Mapping[str, float] | None = None) -> list[Row]:
    return list(frontier(STUDY, asked, batches, limits=limits, price=2.5))


def test_a_row_names_every_limit_that_it_breaks_with_the_time_in_its_place() -> None:
    (one,) = rows(64)
    assert one.answer.tpot is not None
    assert one.answer.ttft is not None
    tpot_s, ttft_s = one.answer.tpot.mid, one.answer.ttft.mid
    (judged,) = rows(64, limits={"tpot": tpot_s / 2, "ttft": ttft_s / 2, "e2e": 1e6})
    assert judged.broken is not None
    assert [(b.name, b.expected_s) for b in judged.broken] == [("tpot", tpot_s), ("ttft", ttft_s)]
    assert judged.meets_limits is False
    assert limits_kept(judged) == f"✗ TPOT {format_duration_s(tpot_s)}, TTFT {format_duration_s(ttft_s)}"
    (kept,) = rows(64, limits={"tpot": tpot_s})  # a limit that is just reached is kept
    assert (kept.meets_limits, limits_kept(kept)) == (True, "✓")


def test_what_does_not_fit_keeps_no_limit_and_costs_nothing() -> None:
    (row,) = rows(4096, asked=replace(CLOSED, load=Load.STATIC), limits={"tpot": 10.0})
    assert (row.meets_limits, row.cost, limits_kept(row)) == (False, None, "✗ does not fit")
    (shown,) = frontier_table([row]).rows
    assert shown.struck
    assert "4,096" in shown.remark


def test_the_cost_is_the_price_of_all_devices_over_the_tokens_of_an_hour() -> None:
    (row,) = rows(8)
    rate = row.answer.output_rate
    assert rate is not None
    assert row.cost == pytest.approx(2 * 2.5 / (rate.mid * 3600) * 1e6)
    assert cost_per_million(row.answer, None) is None


def test_clients_that_wait_are_counted() -> None:
    (row,) = frontier_table(rows(10**6)).rows
    assert row.remark.endswith("of 1,000,000 requests fit at once; the others wait.")


def test_limits_and_cost_are_columns_only_where_they_are_asked_for() -> None:
    plain = frontier_table(list(frontier(STUDY, CLOSED, (1, 2))))
    assert [column.name for column in plain.columns][-1] == "Limited by"
    assert [column.name for column in frontier_table(rows(1)).columns][-1] == "Cost per million"


def test_an_engine_chooses_formats_only_where_none_are_given() -> None:
    wide = replace(STUDY, weight_format=FORMATS["fp32"])
    assert as_run(wide, CLOSED, weights_given=False, cache_given=False).weight_format == FORMATS["bf16"]
    assert as_run(wide, CLOSED, weights_given=True, cache_given=True) == wide
    other = replace(CLOSED, engine="trtllm")
    assert as_run(wide, other, weights_given=False, cache_given=False) == wide
