"""The Memory pane: exact tables, and the calculation behind whatever row has the cursor."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from fractions import Fraction

import pytest
from textual.pilot import Pilot

from calc.commands.tables import answer_table, component_table, tp_table
from calc.fit.memory import memory_report
from calc.model.storage import FORMATS
from calc.model.study import Policy, Study
from calc.sources.catalog import find_device, find_model, models
from tests.each import each
from tests.tui.live_engine import SIZES, open_pane
from tests.tui.screen_text import lines, text
from tui.app.app import KvscopeApp
from tui.app.settings import Settings
from tui.form.state import default_state
from tui.panes.memory import MemoryPane
from tui.views.batches import batch_by_context, batch_by_format, contexts_around
from tui.views.rule import Rule
from tui.widgets.bar import bar_cells, memory_bar
from tui.widgets.data_table import CalcTable
from tui.widgets.derivation import Derivation, derivation_text, legend, wrap

pytestmark = pytest.mark.panes("memory")

REPORT = memory_report(default_state().study)


@asynccontextmanager
async def running(
    size: tuple[int, int] = (120, 40), study: Study | None = None
) -> AsyncIterator[tuple[KvscopeApp, Pilot[None]]]:
    state = default_state() if study is None else replace(default_state(), study=study)
    app = KvscopeApp(state, settings=Settings(), start_engine=False)
    async with app.run_test(size=size) as pilot:
        await open_pane(pilot, "f3", MemoryPane)
        await pilot.pause()
        yield app, pilot


async def test_the_tables_hold_the_exact_numbers() -> None:
    async with running() as (app, _):
        flat = [line.split("│")[2] if line.count("│") > 2 else line for line in lines(app)]
        shown = " ".join(" ".join(flat).split()) + text(app)
        for part in ("8,030,261,248", "16.06 GB", "14.96 GiB", "131,072 B", "5,637,144,576", "70.2%", "266,240"):
            assert part in shown
        tp2 = next(line for line in lines(app) if "8.03 GB" in line)
        assert " ".join(tp2.split("│")[1].split()) == "2 8.03 GB 536.87 MB 134 8.03 GB 536.87 MB 134"


async def test_the_calculation_follows_the_cursor() -> None:
    async with running() as (app, pilot):
        derivation = app.query_one("#derivation", Derivation)
        assert "E + L · (A + M + R) + R_f + H" in derivation.plain()
        await pilot.press("down", "down", "down", "down")
        await pilot.pause()
        assert "Max batch size possible" in derivation.plain()
        assert "⌊(mem − W) / KV⌋" in derivation.plain()
        assert "59 requests" in derivation.plain()


@pytest.mark.slow
async def test_the_cursor_goes_on_from_table_to_table() -> None:
    async with running() as (app, pilot):
        assert app.focused is app.query_one("#table-answer")
        await pilot.press(*["down"] * 5)
        await pilot.pause()
        assert app.focused is app.query_one("#table-tp")
        assert "equal split" in app.query_one("#derivation", Derivation).plain()
        await pilot.press("up")
        await pilot.pause()
        assert app.focused is app.query_one("#table-answer")
        assert app.query_one("#table-answer", CalcTable).cursor_row == 4


@pytest.mark.slow
async def test_a_click_selects_a_row() -> None:
    async with running() as (app, pilot):
        await pilot.click("#table-components", offset=(4, 3))
        await pilot.pause()
        assert "Feed-forward" in app.query_one("#derivation", Derivation).plain()
        assert "3 · h1 · h2" in app.query_one("#derivation", Derivation).plain()


@pytest.mark.slow
async def test_a_tp_that_no_server_could_run_is_struck_with_its_reason() -> None:
    study = replace(default_state().study, tps=(1, 3, 16))
    async with running(study=study) as (app, pilot):
        assert "TP 3: 32 query heads are not divisible by 3" in text(app)
        table = app.query_one("#table-tp", CalcTable)
        cells = table.get_row_at(1)
        assert "strike" in str(cells[1].style)
        assert "strike" not in str(table.get_row_at(0)[1].style)
        await pilot.press(*["down"] * 6)
        await pilot.pause()
        assert "No server could run this" in app.query_one("#derivation", Derivation).plain()


@pytest.mark.slow
async def test_replication_shows_beside_the_equal_split() -> None:
    study = replace(default_state().study, tps=(16,))
    async with running((200, 60), study) as (app, _):
        row = app.query_one("#table-tp", CalcTable).get_row_at(0)
        assert [cell.plain for cell in row][:7] == ["16", "1.00 GB", "67.11 MB", "1,177", "1.04 GB", "134.22 MB", "588"]


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
async def test_tables_and_calculation_are_both_seen_at_every_size(size: tuple[int, int]) -> None:
    async with running(size) as (app, pilot):
        await pilot.press("down", "down")
        await pilot.pause()
        assert "KV cache per token" in text(app)
        assert "2 · L · n_kv · d · b" in text(app)
        assert "131,072 B" in text(app)


@pytest.mark.slow
async def test_an_edit_elsewhere_is_shown_when_the_pane_is_looked_at() -> None:
    async with running() as (app, pilot):
        await pilot.press("f2")
        app.take_state(replace(app.state, study=replace(app.state.study, context=4096)))
        await pilot.press("f3")
        await pilot.pause()
        assert "KV cache per request (4,096 tokens)" in text(app)
        assert app.query_one(MemoryPane).tables()[0].rows[-1][1] == "119"


# --- pure parts -------------------------------------------------------------------------------------------


def test_the_step_that_gives_the_number_comes_first() -> None:
    values = [row.terms[0].value for row in answer_table(REPORT).rows]
    assert values == [8_030_261_248, 16_060_522_496, 131_072, 1_073_741_824, 59]


def test_every_component_row_has_its_steps() -> None:
    rows = component_table(REPORT).rows
    titles = [row.title for row in rows]
    assert titles == ["Embedding", "Attention", "Feed-forward (MLP)", "Norms", "Head", "Total parameters"]
    for row, count in zip(rows, filter(None, REPORT.parameters.components.values()), strict=False):
        layered = sum(term.value * (32 if term.name.endswith("(per layer)") else 1) for term in row.terms)
        assert layered == count


@each("name", sorted(models()))
def test_every_row_of_every_model_can_be_explained(name: str) -> None:
    report = memory_report(replace(REPORT.study, model=find_model(name)))
    for table in (answer_table(report), component_table(report), tp_table(report)):
        assert all(row.terms and row.title for row in table.rows)


def test_what_if_the_context_were_otherwise_is_what_the_report_says() -> None:
    table = batch_by_context(Rule(study=REPORT.study))
    for row, context in zip(table.rows, contexts_around(8192), strict=True):
        report = memory_report(replace(REPORT.study, context=context))
        assert row[1] == (f"{report.max_batch:,}" if report.fits else "–")
        assert row[3] == f"{report.tp[2].max_batch:,}"
        assert row.terms[1].value == report.max_batch


def test_what_if_the_formats_were_otherwise_is_what_the_report_says() -> None:
    table = batch_by_format(Rule(study=REPORT.study))
    assert table.headings == ("One device", "KV bf16 ◂", "KV fp8", "KV q4_0")
    for row in table.rows:
        weights = FORMATS[row[0].split()[1]]
        for cell, kv in zip(row[1:], ("bf16", "fp8", "q4_0"), strict=True):
            study = replace(REPORT.study, weight_format=weights, kv_format=FORMATS[kv])
            assert cell == f"{memory_report(study).max_batch:,}"
    assert [term.value for term in table.rows[0].terms][:2] == [16_060_522_496, 59]


def test_what_does_not_fit_is_a_dash_and_explains_what_is_missing() -> None:
    report = memory_report(replace(REPORT.study, model=find_model("llama-3-70b")))
    table = batch_by_context(Rule(study=report.study))
    assert table.rows[0][1] == "–"
    step = table.rows[0].terms[1]
    assert step.unit == "B"
    assert step.value == report.weight_bytes + Fraction(327_680) * 1024 - 80 * 10**9


def test_sliding_windows_cap_the_what_if_too() -> None:
    study = Study(model=find_model("mistral-7b-v0.1"), device=find_device("h100-sxm"))
    report = memory_report(study)
    rows = {row[0]: row[1] for row in batch_by_context(Rule(study=report.study)).rows}
    assert rows["65,536"] == rows["131,072"]


def test_the_bar_is_as_wide_as_told_and_hides_nothing() -> None:
    for width in (10, 40, 77):
        first = memory_bar(REPORT, width).plain.split("\n")[0]
        assert len(first) == width
        assert {"█", "▒", "·"} <= set(first)
    assert bar_cells((16, 63, 1), 80, 40) == (8, 31, 1)


def test_the_bar_says_what_is_missing() -> None:
    report = memory_report(replace(REPORT.study, model=find_model("llama-3-70b")))
    words = memory_bar(report, 60).plain
    assert "missing 63.79 GB with one request" in words
    assert "device 80.00 GB" in words


def test_a_derivation_keeps_to_its_width_and_loses_no_number() -> None:
    for width in (30, 44, 80, 120):
        drawn = derivation_text("", REPORT.steps, width).plain
        assert max(map(len, drawn.split("\n"))) <= width
        words = drawn.split()
        for term in REPORT.steps:
            assert set(term.substituted.split()) <= set(words)


def test_the_legend_explains_each_symbol_once() -> None:
    said = legend(REPORT.steps)
    assert "n_kv key/value heads" in said
    assert said.count("h1 embedding dimension") == 1


def test_wrapping_breaks_at_spaces_only() -> None:
    assert wrap("a bb ccc dddd", 6, hang=2) == ["a bb", "  ccc", "  dddd"]
    assert wrap("unbreakable", 4) == ["unbreakable"]


def test_both_policies_are_in_the_table_whatever_the_policy() -> None:
    study = replace(REPORT.study, policy=Policy.REPLICATED, tps=(16,))
    report = memory_report(study)
    names = [term.name for term in tp_table(report).rows[0].terms]
    assert [name.rpartition(", ")[2] for name in names] == ["equal split"] * 3 + ["whole heads"] * 3
