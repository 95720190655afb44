"""The Estimate pane: what is asked, the sentence, rows, devices and plot, and the command that prints the same."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, Static

from calc.__main__ import main
from calc.sources.catalog import find_device, find_model
from tests.tui.live_engine import SIZES, open_pane, until
from tests.tui.screen_text import text
from tui.app.app import KvscopeApp
from tui.app.settings import Settings
from tui.form.estimate import estimate_answer
from tui.form.serving import Serving
from tui.form.serving_fields import BY_NAME
from tui.form.state import default_state, with_study
from tui.panes.estimate import DECODE, DEVICES, FRONTIER, EstimatePane
from tui.views.estimate import strip_words
from tui.widgets.data_table import CalcTable
from tui.widgets.derivation import Derivation
from tui.widgets.dial import ChoiceDial
from tui.widgets.plot import PlotView
from tui.widgets.status import StatusStrip

pytestmark = pytest.mark.panes("estimate")


def app_on(device: str | None = "h100-sxm", model: str = "llama-3-8b", **serving: object) -> KvscopeApp:
    state = default_state()
    study = replace(state.study, model=find_model(model))
    if device is not None:
        study = replace(study, device=find_device(device))
    state = replace(with_study(state, study), serving=replace(Serving(), **serving))  # type: ignore[arg-type]
    return KvscopeApp(state, settings=Settings(), start_engine=False)


async def opened(pilot: Pilot[None]) -> EstimatePane:
    pane = await open_pane(pilot, "f6", EstimatePane)
    await until(pilot, lambda: pane.is_settled)
    return pane


async def set_field(pilot: Pilot[None], pane: EstimatePane, name: str, value: str) -> None:
    """Put a text into a field, as typing does, and wait for what follows."""
    pane.query_one(f"#serving-{name} Input", Input).value = value
    await pilot.pause()
    await until(pilot, lambda: pane.is_settled)


def sentence(pane: EstimatePane) -> str:
    return str(pane.query_one("#estimate-sentence", Static).content)


def table(pane: EstimatePane, name: str) -> CalcTable:
    return pane.query_one(f"#{name}", CalcTable)


async def test_the_sentence_rows_and_command_are_those_of_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    async with app_on(limits=(("tpot", 0.02),), price=2.5).run_test(size=(120, 40)) as pilot:
        pane = await opened(pilot)
        said, words, rows = sentence(pane), shlex.split(pane.command_line()), table(pane, FRONTIER).table
    assert rows is not None
    assert words[:2] == ["kvscope", "estimate"]
    assert main([*words[1:]]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    head, _, users = said.partition(" Up to ")
    assert head in printed
    assert users.endswith("users at once stay within the limit (TPOT of 20.0 ms).")
    for row in rows.rows:
        assert " ".join(row.cells).strip() in printed
    assert main([*words[1:], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    most = int(users.split()[0].replace(",", ""))
    kept = [row["batch"] for row in found["frontier"] if row["meets_limits"]]
    assert max(kept) <= most < min(row["batch"] for row in found["frontier"] if not row["meets_limits"])


@pytest.mark.slow
async def test_what_is_asked_is_edited_in_the_pane() -> None:
    async with (app := app_on()).run_test(size=(160, 45)) as pilot:
        pane = await opened(pilot)
        assert table(pane, FRONTIER).row is not None
        assert table(pane, FRONTIER).cursor_row == 5, "the cursor begins at the 32 clients that are asked for"
        for name, value in (("prompt_tokens", "4k"), ("limits", "ttft=300ms,tpot=50ms"), ("price", "2.5")):
            await set_field(pilot, pane, name, value)
        asked = app.state.serving
        assert (asked.prompt_tokens, asked.limits, asked.price) == (4000, (("ttft", 0.3), ("tpot", 0.05)), 2.5)
        shown = table(pane, FRONTIER).table
        assert shown is not None
        assert [column.name for column in shown.columns][-2:] == ["Limits", "Cost per million"]
        assert "✗ TTFT" in shown.rows[-1][-2]
        assert "4,000 prompt tokens" in sentence(pane)
        assert "Worth/hour" in [column.name for column in (table(pane, DEVICES).table or shown).columns]
        pane.query_one("#serving-load", ChoiceDial).focus()
        await pilot.press("right")
        await until(pilot, lambda: app.state.serving.load == "maximum" and pane.is_settled)
        assert "--max-load" in pane.command_line()
        assert not pane.query_one("#serving-count").display


IMPOSSIBLE = (
    ("count", "0", "clients must be at least 1"),
    ("limits", "ttft=500", "a time needs a unit"),
    ("price", "-1", "is not a price"),
    ("prefix_hit", "2", "a share must be"),
    ("draft", "4", "is not K,A"),
    ("draft", "x,0.5", "drafted tokens must be a number"),
    ("devices", "h100-sxn", "h100-sxm"),
    ("batches", "8..1", "goes down"),
    ("version", "latest", "version"),
    ("tp", "", "TP is empty"),
    ("split", "cp=2", "is not one of pp, ep, dp and dcp"),
)


@pytest.mark.slow
async def test_an_impossible_field_is_a_sentence_and_the_last_good_value_stays() -> None:
    async with (app := app_on()).run_test(size=(120, 40)) as pilot:
        pane = await opened(pilot)
        before = app.state.serving
        for name, value, said in IMPOSSIBLE:
            await set_field(pilot, pane, name, value)
            problem = str(pane.query_one("#serving-problem", Static).content)
            assert problem.startswith("✗ "), name
            assert said in problem
            assert app.state.serving == before
            await set_field(pilot, pane, name, BY_NAME[name].write(before))
            assert not pane.query_one("#serving-problem").display
        assert app.state.serving == before


async def test_rows_say_what_does_not_fit_and_operators_follow_the_chosen_row() -> None:
    async with app_on(load="batch", count=8, batches=(8, 4096)).run_test(size=(120, 60)) as pilot:
        pane = await opened(pilot)
        assert table(pane, DECODE).row_count
        table(pane, FRONTIER).focus()
        await pilot.press("end")
        derivation = pane.query_one(Derivation)
        await until(pilot, lambda: derivation.title == "4,096 sequences")
        assert "requests of 1,280 tokens" in derivation.remark
        assert "4,096" in derivation.remark
        assert not table(pane, DECODE).row_count
        await pilot.press("home")
        await until(pilot, lambda: derivation.title == "8 sequences")
        table(pane, DECODE).focus()
        await until(pilot, lambda: "t_0 + max" in derivation.plain())


async def test_devices_stand_beside_each_other_and_say_why_one_gives_nothing() -> None:
    async with app_on(devices=("rtx-3060-12gb", "tpu-v6e", "h200-sxm")).run_test(size=(120, 50)) as pilot:
        pane = await opened(pilot)
        shown = table(pane, DEVICES).table
        assert shown is not None
        names = [row[0] for row in shown.rows]
        assert names[0] == "NVIDIA H100 SXM ◂"
        assert [row.struck for row in shown.rows] == [False, True, True, False]
        assert "fit" in shown.rows[1].remark
        assert "does not run on Google TPU" in shown.rows[2].remark
        chart = pane.query_one("#estimate-plot", PlotView).chart
        assert chart is not None
        assert {"○", "◆"} <= {series.symbol for series in chart.series}


@pytest.mark.parametrize("size", SIZES)
async def test_a_device_without_rates_is_a_sentence_and_others_are_still_compared(size: tuple[int, int]) -> None:
    async with (app := app_on(None)).run_test(size=size) as pilot:
        pane = await opened(pilot)
        assert sentence(pane).startswith("No estimate: times need the bandwidth and the 16-bit peak")
        assert "pick a device" in sentence(pane)
        assert "estimate: pick a device" in app.query_one(StatusStrip).plain(120)[1]
        shown = table(pane, DEVICES).table
        assert shown is not None
        assert [row.struck for row in shown.rows][:2] == [True, False]
        await until(pilot, lambda: app.focused is not None and pane in app.focused.ancestors)
        for key in ("ctrl+n", "ctrl+n", "ctrl+n", "ctrl+n", "down", "up", "ctrl+t"):
            await pilot.press(key)
        assert "No estimate" in pane.export_markdown()


async def test_a_model_that_does_not_fit_is_said() -> None:
    async with app_on(model="llama-3.1-405b").run_test(size=(120, 40)) as pilot:
        pane = await opened(pilot)
        assert "fits beside the weights" in sentence(pane) or "does not" in sentence(pane)
        assert "estimate: does not fit" in pilot.app.query_one(StatusStrip).plain(200)[1]
        assert all(row.struck for row in table(pane, FRONTIER).table.rows)  # type: ignore[union-attr]


@pytest.mark.panes("estimate", "memory")
async def test_the_strip_says_the_estimate_on_every_pane() -> None:
    async with (app := app_on()).run_test(size=(120, 40)) as pilot:
        strip = app.query_one(StatusStrip)
        whole, _, rate = strip_words(estimate_answer(app.state))
        assert whole.startswith("32 users: ")
        await until(pilot, lambda: whole in strip.plain(200)[1])
        assert strip.plain(120)[1].endswith(f"{rate}   ridge 295")
        assert strip.plain(78)[1].endswith(rate)
        await pilot.press("f3")
        assert "tok/s" in text(app)


@pytest.mark.slow
async def test_pages_of_a_narrow_screen_take_the_focus_along() -> None:
    async with (app := app_on()).run_test(size=(80, 24)) as pilot:
        pane = await opened(pilot)
        seen = []
        for _ in EstimatePane.PAGES:
            focused = app.focused
            assert focused is not None
            seen.append(focused.id)
            await pilot.press("ctrl+n")
            await until(pilot, lambda was=focused: app.focused is not None and app.focused is not was)
        assert seen == [FRONTIER, "estimate-beside", DEVICES, DECODE, "estimate-beside"]
        assert pane.page == 0


@pytest.mark.slow
async def test_the_export_holds_sentence_tables_plot_and_notes() -> None:
    async with app_on().run_test(size=(120, 40)) as pilot:
        pane = await opened(pilot)
        written, said = pane.export_markdown(), sentence(pane)
    assert written.startswith("# Estimate of llama-3-8b on NVIDIA H100 SXM")
    for part in (
        said,
        "### By clients",
        "### Devices",
        "tokens/s per user",
        "docs/estimates.md",
    ):
        assert part in written
