"""The Load pane: what it asks, what it shows rate by rate, and that keys never wait for it."""

from __future__ import annotations

import asyncio
import shlex
import subprocess
from dataclasses import replace
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, Static

import tui.form.load_fields
from calc.commands.simulate import simulate_parser, simulated
from calc.sources.catalog import find_device, find_model
from tests.tui.live_engine import SIZES, until
from tests.tui.screen_text import text
from tui.app.app import KvscopeApp, default_state
from tui.app.settings import Settings
from tui.form.load import LoadAsked
from tui.form.load_fields import load_words
from tui.form.state import with_study
from tui.live.load_worker import SHARES
from tui.panes.load import LoadPane
from tui.widgets.data_table import CalcTable
from tui.widgets.plot import PlotView
from tui.widgets.rate_slider import RateSlider

pytestmark = pytest.mark.panes("load")

TIGHT = (("ttft", 0.5), ("tpot", 0.012))


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few requests: the pane is on trial, not the simulation."""
    monkeypatch.setattr(tui.form.load_fields, "REQUESTS", 120)


def app_on(device: str | None = "h100-sxm", model: str = "llama-3-8b", **asked: object) -> KvscopeApp:
    state = default_state()
    study = replace(state.study, model=find_model(model))
    if device is not None:
        study = replace(study, device=find_device(device))
    load = LoadAsked(limits=TIGHT)
    state = replace(with_study(state, study), load=replace(load, **asked))  # type: ignore[arg-type]
    return KvscopeApp(state, settings=Settings(), start_engine=False)


async def opened(pilot: Pilot[None]) -> LoadPane:
    app = pilot.app
    assert isinstance(app, KvscopeApp)
    await until(pilot, lambda: bool(app.query(LoadPane)))
    await pilot.press("f12")
    pane = app.query_one(LoadPane)
    await settled(pilot, pane)
    await until(pilot, lambda: isinstance(app.focused, RateSlider))
    return pane


async def settled(pilot: Pilot[None], pane: LoadPane) -> None:
    await until(pilot, lambda: pane.is_settled)


def sentence(pane: LoadPane) -> str:
    return str(pane.query_one("#load-sentence", Static).content)


def rates(pane: LoadPane) -> CalcTable:
    return pane.query_one("#load-rates", CalcTable)


@pytest.mark.slow
async def test_rates_are_simulated_and_the_slider_goes_through_them() -> None:
    """The rate at which p99 breaks is chosen by itself; ← and → choose another, and everything shown is of that one."""
    async with app_on().run_test(size=(120, 40)) as pilot:
        pane = await opened(pilot)
        assert sentence(pane).startswith("p99 meets TTFT 500 ms and TPOT 12.0 ms up to ")
        assert "beyond that, TPOT is exceeded." in sentence(pane)
        assert rates(pane).row_count == len(SHARES) + 1
        assert pane.run is not None
        before = pane.run["rate"]
        assert pane.run["keeps_limits"] is True
        await pilot.press("right")
        await pilot.pause()
        assert pane.run["rate"] > before
        assert pane.run["keeps_limits"] is False
        assert f"At {pane.run['rate']:.3g}/s: TTFT " in sentence(pane)
        assert rates(pane).cursor_row == pane.query_one(RateSlider).at
        chart = pane.query_one("#load-course", PlotView).chart
        assert chart is not None
        assert chart.title == f"Over time at {pane.run['rate']:.3g} per second"
        await pilot.press(*["right"] * len(SHARES))
        assert "Above the full load the queue never drains." in sentence(pane)
        words, run = shlex.split(pane.command_line()), pane.run
    assert words[:2] == ["kvscope", "simulate"]
    printed = simulated(simulate_parser("simulate").parse_args(words[2:])).points[0]
    assert printed.seen.ttft is not None
    assert run["ttft_s"]["p99"] == printed.seen.ttft.percentile(99)


@pytest.mark.parametrize(
    "after_s", [pytest.param(0.0, marks=pytest.mark.slow), pytest.param(0.3, marks=pytest.mark.slow), 0.2]
)
async def test_no_process_outlives_the_app(monkeypatch: pytest.MonkeyPatch, after_s: float) -> None:
    """Whenever the app ends, while it waits for an edit to settle or while a process simulates, the process is reaped.

    A process that is left is a ResourceWarning, in whichever test happens to run when it is collected.
    """
    started: list[subprocess.Popen[bytes]] = []

    class Seen(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Seen)
    async with (app := app_on()).run_test(size=(120, 40)) as pilot:
        await until(pilot, lambda: bool(app.query(LoadPane)))
        await pilot.press("f12")
        await asyncio.sleep(after_s)
        task = next((worker._task for worker in app.workers if worker.group == "load"), None)
        if task is not None:
            task.cancel()
    assert all(process.returncode is not None and process.stdout.closed for process in started if process.stdout)


@pytest.mark.slow
async def test_the_table_chooses_a_rate_and_an_edit_asks_again() -> None:
    async with (app := app_on()).run_test(size=(120, 40)) as pilot:
        pane = await opened(pilot)
        rates(pane).focus()
        await pilot.press("home")
        await until(pilot, lambda: pane.query_one(RateSlider).at == 0)
        pane.query_one("#load-limits Input", Input).value = "ttft=1ms"
        await until(pilot, lambda: app.state.load.limits == (("ttft", 0.001),))
        await settled(pilot, pane)
        assert sentence(pane).startswith("Nothing meets TTFT 1.00 ms at p99: even a single request does not meet TTFT.")
        pane.query_one("#load-prompt Input", Input).value = "zipf:2"
        await pilot.pause()
        assert "zipf:2 is not a distribution of lengths" in str(pane.query_one("#load-problem", Static).content)
        assert app.state.load.prompt == "1024"
        app.action_undo()
        await until(pilot, lambda: app.state.load.limits == TIGHT)
        await settled(pilot, pane)
        assert sentence(pane).startswith("p99 meets TTFT 500 ms")


@pytest.mark.parametrize(
    ("device", "model", "said"),
    [
        (None, "llama-3-8b", "Times need the bandwidth and the 16-bit peak of a device with 80 GB"),
        pytest.param(
            "h100-sxm",
            "llama-3-70b",
            "No request of 1,280 tokens fits beside the weights.",
            marks=pytest.mark.slow,
        ),
    ],
)
async def test_what_cannot_be_simulated_says_why(device: str | None, model: str, said: str) -> None:
    async with app_on(device, model).run_test(size=(120, 40)) as pilot:
        pane = await opened(pilot)
        assert said in sentence(pane)
        assert pane.tables() == ()
        assert pane.command_line().startswith("kvscope simulate")


async def test_keys_do_not_wait_for_a_simulation(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long one is ended by the next question, and by leaving the app; meanwhile keys are answered."""
    monkeypatch.setattr(tui.form.load_fields, "REQUESTS", 100_000)
    async with (app := app_on()).run_test(size=(120, 40)) as pilot:
        await until(pilot, lambda: bool(app.query(LoadPane)))
        await pilot.press("f12")
        pane = app.query_one(LoadPane)
        await until(pilot, lambda: "Simulating" in sentence(pane))
        pane.query_one("#load-arrivals").focus()
        await pilot.press("right")
        await until(pilot, lambda: app.state.load.arrivals == "constant")
        assert not pane.is_settled


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
async def test_it_is_whole_at_every_size(size: tuple[int, int]) -> None:
    async with app_on(prefix_hit=None).run_test(size=size) as pilot:
        pane = await opened(pilot)
        shown = text(pilot.app)
        for words in ("arrivals", "prompt", "limits", "TP", "rate ◀", "By rate", "TTFT", "Limits", "met"):
            assert words in shown
        if size[0] < 100:
            await pilot.press("p")
            await pilot.pause()
            assert "Over time at" in text(pilot.app)
            await pilot.press("p", "p")
            await pilot.pause()
            assert "In the queue" in text(pilot.app)
        else:
            assert "cache used, %" in shown
            assert "Times by rate" in shown
        document = pane.export_markdown()
        assert document.startswith("# Load over time\n\np99 meets ")
        assert "in order of arrival" in document


def test_the_words_say_what_differs_from_the_command() -> None:
    state = default_state()
    assert load_words(state.study, LoadAsked(limits=())) == ["--requests", "120"]
    asked = LoadAsked(prompt="512..2k", tp=2, arrivals="constant", limits=(("tpot", 0.0305),))
    assert load_words(state.study, asked)[2:] == [
        "--prompt-tokens", "512..2k", "--limit", "tpot=30.5ms", "--tp", "2", "--arrivals", "constant",
    ]  # fmt: skip
