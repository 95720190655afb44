"""The Benchmark pane with a fake engine: cases, rows as they come, stopping, refusals."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Button, Label, ProgressBar, Static

from calc.commands.render import laid_out
from calc.commands.tables import Table
from engine.measure.kinds.batch import Batch, BatchRowMeasured
from engine.measure.kinds.benchmark import Benchmark
from engine.measure.kinds.evaluate import Evaluate
from engine.measure.kinds.formats import Formats
from tests.records import batch_row, format_row
from tests.tui.live.test_predict import INFO
from tests.tui.live_engine import live_app, open_pane, until
from tui.live.measured.formats import formats_table
from tui.live.measurement import Job
from tui.panes.benchmark import BenchmarkPane
from tui.widgets.dial import ChoiceDial
from tui.widgets.option import Option
from tui.widgets.plot import PlotView
from tui.widgets.table_view import TableView

pytestmark = pytest.mark.panes("benchmark")


async def opened(pilot: Pilot[None]) -> BenchmarkPane:
    return await open_pane(pilot, "f8", BenchmarkPane)


async def run_to_end(pilot: Pilot[None], pane: BenchmarkPane, key: str) -> None:
    await pilot.press(key)
    await until(pilot, lambda: pane.job is not None and pane.job.over)


def status(pane: BenchmarkPane) -> str:
    return str(pane.query_one("#benchmark-status", Label).content)


def count(pane: BenchmarkPane, name: str) -> int:
    """How many rows a table shows; 0 before there is one."""
    table = pane.query_one(f"#table-{name}", TableView).shown
    return len(table.rows) if table is not None else 0


def shown(pane: BenchmarkPane, name: str) -> Table:
    table = pane.query_one(f"#table-{name}", TableView).shown
    assert isinstance(table, Table)
    return table


async def test_e_shows_a_row_a_case_with_mark_error_and_bar() -> None:
    async with live_app().run_test(size=(200, 60)) as pilot:
        pane = await opened(pilot)
        await run_to_end(pilot, pane, "e")
        table = shown(pane, "evaluate")
        assert [row[0] for row in table.rows] == ["✓ pass"] * 4
        assert [row[3] for row in table.rows] == ["1.0e-12", "1.0e-11", "1.0e-10", "1.0e-09"]
        lengths = [row[4].count("━") for row in table.rows]
        assert lengths == sorted(lengths)
        assert "✓ 4 of 4 cases pass; the worst error is 1.0e-09" in str(pane.query_one("#verdict", Static).content)
        assert pane.command_line() == "kvscope evaluate"


@pytest.mark.slow
async def test_k_shows_the_checks_with_the_cache() -> None:
    async with live_app().run_test(size=(200, 60)) as pilot:
        pane = await opened(pilot)
        await run_to_end(pilot, pane, "k")
        table = shown(pane, "evaluate")
        assert table.headings[3:8] == ("error", "cached", "stepwise", "chunks", "cached − uncached")
        assert table.rows[0][3:8] == ("1.0e-12",) * 5
        assert pane.command_line() == "kvscope kv-evaluate"


@pytest.mark.slow
async def test_a_failed_case_fails_the_whole() -> None:
    async with live_app("--evaluate-fails").run_test(size=(120, 40)) as pilot:
        pane = await opened(pilot)
        await run_to_end(pilot, pane, "e")
        verdict = pane.query_one("#verdict", Static)
        assert str(verdict.content).startswith("✗ 3 of 4 cases pass")
        assert verdict.has_class("-problem")
        assert "✗ FAIL" in pane.export_markdown()


@pytest.mark.slow
async def test_s_fills_rows_and_plot_as_they_come(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with live_app("--row-gate", str(gate)).run_test(size=(120, 40)) as pilot:
        pane = await opened(pilot)
        await pilot.press("s")
        await until(pilot, lambda: count(pane, "benchmark") == 2 and "left" in status(pane))
        assert pane.running
        assert pane.query_one(ProgressBar).display
        gate.touch()
        await until(pilot, lambda: pane.job is not None and pane.job.over)
        assert not pane.query_one(ProgressBar).display
        rows = shown(pane, "benchmark").rows
        assert [row[0] for row in rows] == ["10", "50", "100", "500", "1,000"]
        assert rows[2][1:4] == ("100 ms", "200 ms", "2.00x")
        chart = pane.query_one("#plot-benchmark", PlotView).chart
        assert chart is not None
        assert [len(series.points) for series in chart.series] == [5, 5]
        assert "made these numbers up" in str(pane.query_one("#notes", Static).content)


@pytest.mark.slow
async def test_escape_stops_the_sweep_and_keeps_its_rows(tmp_path: Path) -> None:
    async with live_app("--row-gate", str(tmp_path / "never")).run_test(size=(120, 40)) as pilot:
        pane = await opened(pilot)
        await pilot.press("s")
        await until(pilot, lambda: count(pane, "benchmark") == 2)
        assert pane.query_one("#start-benchmark", Button).disabled
        assert not pane.query_one("#stop", Button).disabled
        await pilot.press("escape")
        await until(pilot, lambda: pane.job is not None and pane.job.over)
        assert "stopped by you" in status(pane)
        assert count(pane, "benchmark") == 2
        assert not pane.query_one("#start-benchmark", Button).disabled
        assert pane.check_action("start", ("benchmark",))
        assert not pane.check_action("stop", ())


@pytest.mark.slow
async def test_the_buttons_do_what_the_keys_do() -> None:
    async with live_app().run_test(size=(120, 40)) as pilot:
        pane = await opened(pilot)
        await pilot.click("#start-kv-evaluate")
        await until(pilot, lambda: pane.job is not None and pane.job.over)
        assert pane.job is not None
        assert isinstance(pane.job.request, Evaluate)
        assert pane.job.request.cached


IMPOSSIBLE = [
    ("benchmark-lengths", "10,,20", "s", "prompt lengths is empty"),
    ("batch-batches", "8..1", "b", "batches range 8..1 goes down"),
    ("batch-batches", "4096", "b", "batches must be at most 1,024"),
    ("batch-context", "0", "b", "context must be at least 1"),
    ("model-repeats", "0", "s", "repeats must be at least 1"),
    ("benchmark-new_tokens", "many", "s", "new tokens must be a number"),
    ("evaluate-atol", "0", "e", "tolerance must be above 0"),
]


@pytest.mark.slow
async def test_an_impossible_option_is_named_and_nothing_is_sent() -> None:
    async with live_app(start_engine=False).run_test(size=(120, 40)) as pilot:
        pane = await opened(pilot)
        for option, text, key, message in IMPOSSIBLE:
            entry = pane.query_one(f"#option-{option}", Option)
            good, entry.text = entry.text, text
            await pilot.pause()
            assert message in status(pane)
            await pilot.press(key)
            assert pane.job is None
            entry.text = good
            await pilot.pause()
            assert message not in status(pane)


@pytest.mark.slow
async def test_an_option_of_the_sweep_does_not_stop_an_evaluation() -> None:
    async with live_app().run_test(size=(120, 40)) as pilot:
        pane = await opened(pilot)
        pane.query_one("#option-benchmark-lengths", Option).text = "no"
        await run_to_end(pilot, pane, "e")
        assert "4 of 4" in status(pane)


@pytest.mark.slow
async def test_letters_typed_into_a_field_start_nothing() -> None:
    async with live_app(start_engine=False).run_test(size=(120, 40)) as pilot:
        pane = await opened(pilot)
        pane.query_one("#option-evaluate-weights Input").focus()
        await pilot.press("s", "e", "k")
        assert pane.query_one("#option-evaluate-weights", Option).text == "sek"
        assert pane.job is None


@pytest.mark.slow
async def test_a_narrow_screen_shows_what_was_started() -> None:
    async with live_app().run_test(size=(80, 24)) as pilot:
        pane = await opened(pilot)
        await run_to_end(pilot, pane, "e")
        assert pane.query_one("#table-evaluate").is_on_screen
        await run_to_end(pilot, pane, "s")
        assert pane.query_one("#table-benchmark").is_on_screen
        assert not pane.query_one("#table-evaluate").is_on_screen
        await pilot.press("ctrl+n")
        await pilot.pause()
        assert pane.query_one("#table-evaluate").is_on_screen


def test_the_command_line_says_what_differs_from_the_defaults() -> None:
    assert Job(Benchmark()).words()[1:] == []
    assert Job(Benchmark(lengths=(5, 6), new_tokens=3, model="a b")).words()[1:] == [
        *("--model", "a b", "--lengths", "5,6", "--new-tokens", "3"),
    ]
    assert Job(Benchmark(tp=2, compile="auto")).words()[1:] == ["--compile", "auto", "--tp", "2"]
    assert Job(Batch()).words()[1:] == []
    assert Job(Batch(batches=(1, 3), context=8, new_tokens=4, ragged=False, dtype="int8")).words()[1:] == [
        *("--dtype", "int8", "--batches", "1,3", "--context", "8", "--new-tokens", "4", "--equal"),
    ]
    assert Job(Formats(model="m.gguf")).words()[1:] == ["--model", "m.gguf"]
    assert Job(Evaluate(weights="w.pt", cases="c.json", atol=1e-3, dtype="float32")).words()[1:] == [
        *("--weights", "w.pt", "--cases", "c.json", "--atol", "0.001", "--dtype", "float32"),
    ]


@pytest.mark.slow
async def test_export_has_tables_plot_and_machine() -> None:
    async with live_app().run_test(size=(120, 40)) as pilot:
        pane = await opened(pilot)
        await run_to_end(pilot, pane, "e")
        await run_to_end(pilot, pane, "s")
        text = pane.export_markdown()
        assert text.index("Latency sweep, 40 new tokens") < text.index("evaluate")
        assert "prompt, tokens" in text
        assert "Measured on fake cpu, 2 cores" in text
        assert [table.title for table in pane.tables()] == ["Latency sweep, 40 new tokens", "evaluate"]
        assert shlex.split(pane.command_line()) == ["kvscope", "benchmark"]


@pytest.mark.slow
async def test_f_fills_the_table_of_formats() -> None:
    async with live_app().run_test(size=(200, 60)) as pilot:
        pane = await opened(pilot)
        pane.query_one("#option-model-model", Option).text = "some.gguf"
        await run_to_end(pilot, pane, "f")
        table = shown(pane, "formats")
        assert [row[:2] for row in table.rows] == [
            ("float32", "full"), ("bfloat16", "full"), ("float16", "full"), ("int8", "full"), ("int4", "full"),
            ("float32", "int8"),
        ]  # fmt: skip
        assert table.rows[3][2:] == (
            "30.00 MB", "5.00 ms", "6.00 ms", "200 tok/s", "2.00x", "96/99", "0.0300", "0.300", "13.00",
        )  # fmt: skip
        assert "✓ 6 formats measured on 99 tokens of text" in status(pane)
        assert not pane.query_one("#plot-benchmark", PlotView).display  # an empty plot says nothing
        assert "made these formats up" in str(pane.query_one("#notes", Static).content)
        assert pane.command_line() == "kvscope formats --model some.gguf"
        assert "| int4 | full |" in pane.export_markdown()
        await run_to_end(pilot, pane, "s")
        assert pane.query_one("#plot-benchmark", PlotView).display
        assert [table.title for table in pane.tables()][1] == "Formats against float32"
        views = [view.id for view in pane.query("#benchmark-sweep > TableView, #benchmark-sweep > PlotView")]
        assert views[:3] == ["table-benchmark", "plot-benchmark", "table-formats"]  # what was started last stands first


@pytest.mark.slow
async def test_formats_fit_a_narrow_screen() -> None:
    async with live_app().run_test(size=(80, 24)) as pilot:
        pane = await opened(pilot)
        await run_to_end(pilot, pane, "f")
        view = pane.query_one("#table-formats", TableView)
        assert view.is_on_screen
        table = shown(pane, "formats")
        assert table.headings[:3] == ("Weights", "Cache", "● Bytes")
        assert laid_out(table, 78) is not None


def test_a_narrow_table_of_formats_keeps_what_they_cost() -> None:
    table = formats_table([format_row("float32"), format_row("bfloat16"), format_row("float32", cache="int8")])
    layout = laid_out(table, 56)  # half of 120 columns
    assert layout is not None
    assert [table.headings[i] for i in layout.columns] == [
        "Weights", "Cache", "● Bytes", "● Rate", "Speedup", "Same token",
    ]  # fmt: skip


async def test_h_measures_this_machine() -> None:
    async with live_app().run_test(size=(200, 60)) as pilot:
        pane = await opened(pilot)
        await run_to_end(pilot, pane, "h")
        rows = shown(pane, "machine").rows
        assert [(row[0], row[1], row[6]) for row in rows] == [
            ("fp32", "8.00 GB/s", "80.0 GFLOP/s"), ("bf16", "10.00 GB/s", "100.0 GFLOP/s"),
        ]  # fmt: skip
        chart = pane.query_one("#plot-machine", PlotView).chart
        assert chart is not None
        assert [(series.label, series.points) for series in chart.series] == [
            ("fp32", ((1.0, 8.0), (512.0, 80.0))), ("bf16", ((1.0, 10.0), (512.0, 100.0))),
        ]  # fmt: skip
        assert "medians of 5 rounds, spread 10 %, load average 1.5" in status(pane)
        assert pane.command_line() == "kvscope machine"
        pane.query_one("#dial-machine-measure", ChoiceDial).value = "anew"
        await run_to_end(pilot, pane, "h")
        assert "This machine was busy." in str(pane.query_one("#notes", Static).content)
        assert pane.command_line() == "kvscope machine --measure"


async def test_b_fills_rows_measured_beside_predicted_and_the_plot() -> None:
    async with live_app().run_test(size=(200, 60)) as pilot:
        pane = await opened(pilot)
        pane.query_one("#option-batch-batches", Option).text = "1,2,32"
        await run_to_end(pilot, pane, "b")
        table = shown(pane, "batch")
        assert [row[:2] for row in table.rows] == [("1", "90.9"), ("2", "166.7"), ("32", "761.9")]
        assert table.rows[0][2:6] == ("90.9", "1.00", "1.00x", "1.00x")
        assert table.rows[2][2:7] == ("870.9", "0.87", "8.38x", "9.58x", "arithmetic")
        chart = pane.query_one("#plot-batch", PlotView).chart
        assert chart is not None
        assert [(series.symbol, len(series.points)) for series in chart.series] == [("·", 3), ("●", 3)]
        assert not pane.query_one("#plot-benchmark", PlotView).display
        notes = str(pane.query_one("#notes", Static).content)
        assert "Predicted: the slower of reading weights and caches at" in notes
        assert "made these batches up" in notes
        assert "✓ 3 batches measured, medians of 5 rounds" in status(pane)
        assert pane.command_line() == "kvscope batch --batches 1,2,32"
        assert [table.title for table in pane.tables()] == ["Batch decode"]
        text = pane.export_markdown()
        assert "| 32 | 761.9 | 870.9 |" in text
        assert "batch, rows" in text
        assert "- Predicted: the slower of" in text


def test_a_later_round_takes_the_place_of_the_one_before() -> None:
    job = Job(Batch(), model=INFO)
    for step_s, batch in ((0.022, 1), (0.024, 2), (0.011, 1)):
        job.feed([BatchRowMeasured(row=batch_row(batch, step_s), prefill_tokens=256, prefill_s=0.256)])
    assert [(row.batch, row.step_p50_s) for row in job.rows] == [(1, 0.011), (2, 0.024)]
    assert job.predicted is not None
    assert job.predicted.tokens_per_s[0] == pytest.approx(1 / 0.011)
    assert not job.over
    stranger = Job(Batch())
    stranger.feed([BatchRowMeasured(row=batch_row(1, 0.011), prefill_tokens=256, prefill_s=0.256)])
    assert stranger.predicted is None  # of a model that nobody has described


@pytest.mark.slow
async def test_batches_fit_a_narrow_screen_and_half_a_wider_one() -> None:
    for width, height in ((80, 24), (120, 40)):
        async with live_app().run_test(size=(width, height)) as pilot:
            pane = await opened(pilot)
            pane.query_one("#option-batch-batches", Option).text = "1,32"
            await run_to_end(pilot, pane, "b")
            view = pane.query_one("#table-batch", TableView)
            table = shown(pane, "batch")
            assert view.is_on_screen
            assert table.headings[:2] == ("Batch", "Tokens/s: ● measured")
            assert laid_out(table, view.size.width) is not None


@pytest.mark.slow
async def test_batches_can_be_stopped_and_keep_their_rows(tmp_path: Path) -> None:
    async with live_app("--row-gate", str(tmp_path / "never")).run_test(size=(120, 40)) as pilot:
        pane = await opened(pilot)
        await pilot.click("#start-batch")
        await until(pilot, lambda: count(pane, "batch") == 2)
        await pilot.press("escape")
        await until(pilot, lambda: pane.job is not None and pane.job.over)
        assert "stopped by you" in status(pane)
        assert count(pane, "batch") == 2


@pytest.mark.slow
async def test_the_forms_batches_make_the_request_and_enter_starts_it() -> None:
    async with live_app().run_test(size=(120, 40)) as pilot:
        pane = await opened(pilot)
        for name, text in (
            ("batch-batches", "1..3"),
            ("batch-context", "1Ki"),
            ("batch-new_tokens", "4"),
            ("model-repeats", "2"),
        ):
            pane.query_one(f"#option-{name}", Option).text = text
        pane.query_one("#dial-batch-ragged", ChoiceDial).focus()
        await pilot.press("right")
        pane.query_one("#option-batch-new_tokens Input").focus()
        await pilot.press("enter")
        await until(pilot, lambda: pane.job is not None and pane.job.over)
        assert pane.job is not None
        assert pane.job.request == Batch(batches=(1, 2, 3), context=1024, new_tokens=4, repeats=2, ragged=False)


@pytest.mark.slow
async def test_what_was_started_last_stands_first() -> None:
    async with live_app().run_test(size=(200, 60)) as pilot:
        pane = await opened(pilot)
        for key in ("f", "b", "s"):
            await run_to_end(pilot, pane, key)
        views = [view.id for view in pane.query("#benchmark-sweep > TableView, #benchmark-sweep > PlotView")]
        assert views[:5] == ["table-benchmark", "plot-benchmark", "table-batch", "plot-batch", "table-formats"]
        assert views[5:] == ["table-machine", "plot-machine"]  # was not started
        titles = [table.title for table in pane.tables()]
        assert titles == ["Latency sweep, 40 new tokens", "Batch decode", "Formats against float32"]


@pytest.mark.slow
async def test_the_palette_starts_a_measurement() -> None:
    async with live_app().run_test(size=(120, 40)) as pilot:
        app = pilot.app
        await until(pilot, lambda: bool(app.query(BenchmarkPane)))
        commands = {command.title: command.callback for command in app.get_system_commands(app.screen)}
        commands["Measure batch decode"]()
        pane = app.query_one(BenchmarkPane)
        await until(pilot, lambda: pane.is_on_screen and pane.job is not None and pane.job.over)
        assert pane.command_line() == "kvscope batch"
