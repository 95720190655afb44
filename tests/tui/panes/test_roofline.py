"""The Roofline pane: keys and the mouse move its points, table and calculation follow, marks say what changes."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace

import pytest
from textual.pilot import Pilot
from textual.widgets import Static

from calc.__main__ import main
from calc.model.storage import FORMATS
from calc.sources.catalog import find_device, find_model
from calc.sources.machine import MeasuredMachine, Rates
from tests.tui.live_engine import SIZES, open_pane, until
from tests.tui.screen_text import text
from tui.app.app import KvscopeApp
from tui.app.settings import Settings
from tui.form.state import default_state, with_study
from tui.panes.roofline import RooflinePane
from tui.views.roofline import crossings_of, measured_points, roofline_chart, step_view
from tui.widgets.data_table import CalcTable
from tui.widgets.derivation import Derivation
from tui.widgets.roofline_plot import RooflinePlot
from tui.widgets.slider import KNOB, MARK, Slider

pytestmark = pytest.mark.panes("roofline")


def app_on(device: str | None = "h100-sxm", model: str = "llama-3-8b") -> KvscopeApp:
    state = default_state()
    study = replace(state.study, model=find_model(model))
    if device is not None:
        study = replace(study, device=find_device(device))
    return KvscopeApp(with_study(state, study), settings=Settings(), start_engine=False)


async def opened(pilot: Pilot[None]) -> RooflinePane:
    pane = await open_pane(pilot, "f5", RooflinePane)
    await until(pilot, lambda: pane.is_settled)
    return pane


@pytest.mark.slow
async def test_arrows_in_the_plot_move_batch_and_context_and_everything_follows() -> None:
    async with (app := app_on()).run_test(size=(120, 40)) as pilot:
        pane = await opened(pilot)
        await until(pilot, lambda: app.focused is pane.query_one(RooflinePlot))
        table = pane.query_one(CalcTable)
        before = table.table
        for key, wanted in (("right", (64, 2048)), ("up", (64, 4096)), ("left", (32, 4096)), ("down", (32, 2048))):
            await pilot.press(key)
            await until(pilot, lambda wanted=wanted: (app.state.step_batch, app.state.step_context) == wanted)
        assert table.table == before
        await pilot.press("right")
        await until(pilot, lambda: pane.query_one("#step-batch", Slider).value == 64)
        assert table.table != before
        assert str(pane.query_one("#card-operators").border_title) == "Decode step, batch 64, 2,048 tokens"
        await pilot.press("s")
        assert str(pane.query_one("#card-operators").border_title) == "Prefill, batch 64, 2,048 tokens each"
        assert pane.tables()[0].title.startswith("Prefill")


async def test_the_chosen_operator_is_worked_out_and_its_time_is_that_of_the_table() -> None:
    async with (app := app_on()).run_test(size=(120, 40)) as pilot:
        pane = await opened(pilot)
        table, derivation = pane.query_one(CalcTable), pane.query_one(Derivation)
        table.focus()
        await pilot.press("down")
        await until(pilot, lambda: table.cursor_row == 1)
        assert table.row is not None
        assert derivation.title == table.row[1] == "mlp.gate_up_proj"
        whole = derivation.terms[0]
        view = step_view(app.state)
        assert view.decode is not None
        timed = next(one for one in view.decode.operators if one.operator.name == derivation.title)
        assert float(whole.value) == pytest.approx(timed.time_s)
        assert "t_0 + max(F / π_r, Q / β_r)" in derivation.plain()
        await pilot.press("end")
        await until(pilot, lambda: derivation.title == "Sum")


@pytest.mark.slow
async def test_a_scale_is_dragged_typed_into_and_marked() -> None:
    async with (app := app_on()).run_test(size=(120, 40)) as pilot:
        pane = await opened(pilot)
        batch, context = pane.query_one("#step-batch", Slider), pane.query_one("#step-context", Slider)
        *_, at = crossings_of(step_view(app.state))
        assert batch.marks == (at.batch_products,)  # attention never lets the whole step be limited by arithmetic
        assert context.marks == (at.context_cache, at.context_prompt)
        drawn = batch.render().plain
        head, cells = batch.track
        assert (drawn.index(KNOB), drawn.index(MARK)) == (
            head + batch.cell_of(32),
            head + batch.cell_of(at.batch_products or 0),
        )
        left = 1 + head
        await pilot.mouse_down("#step-batch", offset=(left, 0))
        await until(pilot, lambda: app.state.step_batch == 1)
        await pilot.hover("#step-batch", offset=(left + cells - 1, 0))
        await until(pilot, lambda: app.state.step_batch == 65_536)
        await pilot.mouse_up("#step-batch", offset=(left + cells - 1, 0))
        await pilot.hover("#step-batch", offset=(left, 0))
        assert app.state.step_batch == 65_536, "it is let go"
        context.focus()
        await pilot.press("4", "k", "enter")
        await until(pilot, lambda: app.state.step_context == 4000)
        await pilot.press("4", "k", "k")
        await until(pilot, lambda: "unknown suffix" in text(app))
        await pilot.press("escape")
        assert app.state.step_context == 4000


async def test_the_plot_is_dragged() -> None:
    async with (app := app_on()).run_test(size=(120, 40)) as pilot:
        await opened(pilot)
        await pilot.mouse_down("#roofline-plot", offset=(40, 8))
        await pilot.hover("#roofline-plot", offset=(52, 5))
        await until(pilot, lambda: (app.state.step_batch, app.state.step_context) == (128, 4096))
        await pilot.mouse_up("#roofline-plot", offset=(52, 5))
        await pilot.hover("#roofline-plot", offset=(10, 8))
        assert (app.state.step_batch, app.state.step_context) == (128, 4096)


@pytest.mark.parametrize("size", SIZES)
async def test_a_device_without_rates_is_a_sentence(size: tuple[int, int]) -> None:
    async with (app := app_on(None)).run_test(size=size) as pilot:
        pane = await opened(pilot)
        said = str(pane.query_one("#roofline-crossings", Static).content)
        assert said.startswith("No roofline: times need the bandwidth and the 16-bit peak")
        assert "No roofline" in text(app)
        assert pane.tables() == ()
        await pilot.press("ctrl+n", "s", "right", "f3", "f5")
        await until(pilot, lambda: app.active_pane is pane)


async def test_the_command_prints_the_same_operators(capsys: pytest.CaptureFixture[str]) -> None:
    async with (app := app_on()).run_test(size=(120, 40)) as pilot:
        pane = await opened(pilot)
        kvscope, *words = shlex.split(pane.command_line())
        view = step_view(app.state)
    assert kvscope == "kvscope"
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for phase in ("decode", "prefill"):
        time = view.phase(phase)
        assert time is not None
        assert [one["time_s"] for one in found[phase]["operators"]] == [one.time_s for one in time.operators]


def test_letters_roofs_and_measured_points_are_told_apart_without_colour() -> None:
    state = default_state()
    state = with_study(state, replace(state.study, device=find_device("h100-sxm")))
    chart = roofline_chart(replace(step_view(state), measured=((1.0, 1e12),)))
    roofs = [series for series in chart.series if "ridge" in series.label]
    assert [series.label.split(",")[0] for series in roofs] == ["bf16 989.4 TFLOP/s", "fp8"]
    assert roofs[0].points[1] == (pytest.approx(989.4e12 / 3.35e12), 989.4e12)  # the ridge
    drawn = {series.symbol for series in chart.series if series.points}
    assert {"q", "a", "o", "m", "h", "Q", "A", "O", "M", "H", "○", "◇", "●"} <= drawn
    named = {series.symbol: series.label for series in chart.series if series.label}
    assert (named["a"], named["●"]) == ("attention", "products measured here")
    peak = max(y for series in chart.series for _, y in series.points if not series.joined)
    assert peak < 989.4e12, "no expected point is above its roof"


def test_products_measured_here_are_laid_over_this_machine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = Rates(
        read_bytes_per_s={"bf16": 10e9},
        matmul_flops_per_s={"bf16": {1: 10e9, 16: 100e9}, "fp32": {1: 5e9}},
        operator_overhead_s=1e-6,
    )
    machine = MeasuredMachine(
        cpu="A CPU", cores=2, threads=2, memory_bytes=16 * 2**30, rates=rates, gpus=(), load_average=None, spread=0.1,
        measured_at="today",
    )  # fmt: skip
    monkeypatch.setattr("calc.sources.machine.machine_or_none", lambda: machine)
    study = replace(default_state().study, device=machine.device())
    assert measured_points(study) == ((1.0, 10e9), (16.0, 100e9))  # 2 rows / 2 bytes of a weight
    assert measured_points(replace(study, weight_format=FORMATS["fp32"])) == ((0.5, 5e9),)
    assert measured_points(replace(study, device=find_device("h100-sxm"))) == ()
    chart = roofline_chart(step_view(with_study(default_state(), study)))
    assert [series.label for series in chart.series if series.symbol == "●"] == ["products measured here"]
    assert any(series.label.startswith("bf16 100") for series in chart.series)


async def test_the_export_holds_plot_tables_and_crossings() -> None:
    async with app_on().run_test(size=(120, 40)) as pilot:
        written = (await opened(pilot)).export_markdown()
    for part in ("○ whole step", "### Decode step", "### Prefill", "- Batch: arithmetic limits matrix products from"):
        assert part in written
