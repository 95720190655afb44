"""The Intensity pane: what its dials do to the state, and that it shows the report's numbers."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest
from textual.widgets import Label, Static

from calc.commands.intensity import intensity_parser, query_from
from calc.commands.tables import Table
from calc.intensity.attention import Attention
from calc.sources.catalog import find_model
from tests.tui.live_engine import live_app, open_pane
from tui.app.app import KvscopeApp
from tui.form.state import with_study
from tui.panes.base import StateEdited
from tui.panes.intensity import IntensityPane, report_tables
from tui.widgets.dial import ChoiceDial, NumberDial
from tui.widgets.plot import PlotView
from tui.widgets.table_view import TableView

pytestmark = pytest.mark.panes("intensity")


def app() -> KvscopeApp:
    return live_app(start_engine=False)


def shown_table(pane: IntensityPane, name: str) -> Table:
    shown = pane.query_one(f"#{name}", TableView).shown
    assert isinstance(shown, Table)
    return shown


@pytest.mark.slow
async def test_arrows_double_and_halve_what_is_chosen() -> None:
    async with (the_app := app()).run_test(size=(120, 40)) as pilot:
        await open_pane(pilot, "f4", IntensityPane)
        await pilot.press("right")
        await pilot.pause()
        assert the_app.state.attention_context == 2048
        await pilot.press("left", "left")
        await pilot.pause()
        assert the_app.state.attention_context == 512
        await pilot.press("down", "left")
        await pilot.pause()
        assert (the_app.state.attention_context, the_app.state.attention_head_dim) == (512, 64)
        assert the_app.analysis.intensity.query.head_dim == 64


async def test_a_number_is_typed_checked_and_taken() -> None:
    async with (the_app := app()).run_test(size=(120, 40)) as pilot:
        pane = await open_pane(pilot, "f4", IntensityPane)
        problem = pane.query_one("#intensity-problem", Label)
        for key in "8kk":
            await pilot.press(key)
        await pilot.pause()
        assert problem.display
        assert "unknown suffix" in str(problem.content)
        assert the_app.state.attention_context == 1024, "the last good state stays"
        await pilot.press("enter")
        assert the_app.state.attention_context == 1024
        await pilot.press("backspace", "enter")
        await pilot.pause()
        assert not problem.display
        assert the_app.state.attention_context == 8000


@pytest.mark.slow
async def test_escape_drops_what_was_typed() -> None:
    async with (the_app := app()).run_test(size=(120, 40)) as pilot:
        pane = await open_pane(pilot, "f4", IntensityPane)
        await pilot.press("7", "7", "escape")
        await pilot.pause()
        dial = pane.query_one("#dial-n", NumberDial)
        assert (dial.typed, dial.value, the_app.state.attention_context) == (None, 1024, 1024)


@pytest.mark.slow
async def test_f_switches_the_algorithm_and_every_view_follows() -> None:
    async with (the_app := app()).run_test(size=(200, 60)) as pilot:
        pane = await open_pane(pilot, "f4", IntensityPane)
        standard = shown_table(pane, "steps-prefill")
        await pilot.press("f")
        await pilot.pause()
        assert the_app.state.attention is Attention.FLASH
        assert pane.query_one("#dial-attention", ChoiceDial).value == "flash"
        flash = shown_table(pane, "steps-prefill")
        assert flash != standard
        assert flash == report_tables(the_app.analysis.intensity)[0]
        chart = pane.query_one("#plot-prefill", PlotView).chart
        assert chart is not None
        assert "flash" in chart.title
        await pilot.press("f")
        await pilot.pause()
        assert shown_table(pane, "steps-prefill") == standard


@pytest.mark.slow
async def test_x_leaves_the_softmax_out() -> None:
    async with (the_app := app()).run_test(size=(120, 40)) as pilot:
        await open_pane(pilot, "f4", IntensityPane)
        await pilot.press("x")
        await pilot.pause()
        assert the_app.state.softmax_flops == 0
        assert the_app.analysis.intensity.prefill.flops == 4 * 1024**2 * 128


@pytest.mark.slow
async def test_the_sums_on_screen_are_the_totals() -> None:
    async with (the_app := app()).run_test(size=(200, 60)) as pilot:
        pane = await open_pane(pilot, "f4", IntensityPane)
        *_, total = shown_table(pane, "steps-prefill").rows
        prefill = the_app.analysis.intensity.prefill
        assert total[2] == "542,113,792" == f"{prefill.flops:,}"
        moved = int(total[4].replace(",", "")) + int(total[6].replace(",", ""))
        assert moved == prefill.bytes == 9_437_184
        sentences = str(pane.query_one("#observations", Static).content)
        assert "57.4 FLOP/B" in sentences


@pytest.mark.slow
async def test_a_model_of_several_kinds_of_layers_is_shown_by_kind() -> None:
    async with (the_app := app()).run_test(size=(160, 45)) as pilot:
        pane = await open_pane(pilot, "f4", IntensityPane)
        assert pane.query_one("#dial-d").display
        study = replace(the_app.state.study, model=find_model("gpt-oss-20b"))
        pane.post_message(StateEdited(with_study(the_app.state, study), pane))
        await pilot.pause()
        assert not pane.query_one("#dial-d").display
        assert not pane.query_one("#flash").display
        assert pane.query_one("#dial-attention", ChoiceDial).value == "flash"
        kinds = [row[1] for row in shown_table(pane, "steps-decode").rows]
        assert kinds == ["sliding attention, window 128", "full attention", "sum"]
        assert pane.command_line() == "kvscope intensity --model gpt-oss-20b --weight-format bf16"
        await pilot.press("f")
        await pilot.pause()
        assert the_app.state.attention is Attention.STANDARD
        assert the_app.analysis.intensity.layers is not None


@pytest.mark.slow
async def test_a_mouse_turns_a_dial_by_its_arrow() -> None:
    async with (the_app := app()).run_test(size=(120, 40)) as pilot:
        await open_pane(pilot, "f4", IntensityPane)
        text = the_app.query_one("#dial-n", NumberDial).render().plain
        await pilot.click("#dial-n", offset=(1 + text.index("▶"), 0))
        await pilot.pause()
        assert the_app.state.attention_context == 2048
        await pilot.click("#dial-n", offset=(1 + text.index("◀"), 0))
        await pilot.pause()
        assert the_app.state.attention_context == 1024


@pytest.mark.slow
async def test_a_narrow_screen_turns_pages_and_a_wide_one_has_none() -> None:
    async with app().run_test(size=(80, 24)) as pilot:
        pane = await open_pane(pilot, "f4", IntensityPane)
        seen = []
        for _ in range(5):
            seen.append(
                tuple(
                    name
                    for name in ("plot-prefill", "plot-decode", "steps-prefill", "by-batch", "observations")
                    if pane.query_one(f"#{name}").is_on_screen
                )
            )
            await pilot.press("ctrl+n")
            await pilot.pause()
        assert [seen[i] for i in (0, 1, 2, 4)] == [
            ("plot-prefill",),
            ("plot-decode",),
            ("steps-prefill",),
            ("observations",),
        ]
    async with app().run_test(size=(120, 40)) as pilot:
        pane = await open_pane(pilot, "f4", IntensityPane)
        assert not pane.check_action("next_page", ())
        assert pane.query_one("#plot-prefill").is_on_screen
        assert pane.query_one("#plot-decode").is_on_screen


@pytest.mark.slow
async def test_the_command_line_gives_the_same_report() -> None:
    """What is copied, read by the command line's own parser, asks the same question after each turn of a dial."""
    async with (the_app := app()).run_test(size=(120, 40)) as pilot:
        pane = await open_pane(pilot, "f4", IntensityPane)
        for key in ("right", "f", "x", "m"):
            await pilot.press(key)
            await pilot.pause()
            kvscope, command, *options = shlex.split(pane.command_line())
            assert (kvscope, command) == ("kvscope", "intensity")
            query = the_app.analysis.intensity.query
            asked = query_from(intensity_parser("kvscope intensity").parse_args(options))
            assert asked.device.memory_bytes == query.device.memory_bytes
            assert replace(asked, device=query.device) == query
        assert (query.context, query.attention, query.softmax_flops, query.causal) == (2048, Attention.FLASH, 0, True)


@pytest.mark.slow
async def test_the_export_holds_tables_plots_and_sentences() -> None:
    async with (the_app := app()).run_test(size=(120, 40)) as pilot:
        pane = await open_pane(pilot, "f4", IntensityPane)
        text = pane.export_markdown()
        for table in report_tables(the_app.analysis.intensity):
            assert table.title in text
        assert "context N, tokens" in text
        assert "batch B, sequences" in text
        assert "\x1b" not in text
        assert pane.tables()[0].rows[-1][2] == "542,113,792"
