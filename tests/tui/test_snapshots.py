"""Pictures of the panes at three sizes, compared cell by cell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from calc.sources.catalog import find_device
from tests.tui.hybrid import hybrid
from tests.tui.live_engine import SIZES, live_app, open_pane, until
from tests.tui.screen_text import lines
from tui.app.app import KvscopeApp
from tui.app.settings import Settings
from tui.form.state import default_state, with_study
from tui.panes.benchmark import BenchmarkPane
from tui.panes.estimate import EstimatePane
from tui.panes.generate import GeneratePane
from tui.panes.load import LoadPane
from tui.panes.roofline import RooflinePane
from tui.widgets.status import StatusStrip

ALONE = {"spec": (), "memory": ("memory",), "intensity": ("intensity",)}
"""Panes that are drawn beside Spec alone."""
PANES = {"spec": "f2", "memory": "f3", "intensity": "f4", "roofline": "f5", "estimate": "f6"}


def named(size: tuple[int, int]) -> str:
    """A size as it stands in the name of a picture."""
    return f"{size[0]}x{size[1]}"


def shown_pane(key: str, kind: str, settled: Callable[[KvscopeApp], bool] = lambda app: True) -> Any:
    """What to do before the picture: open the pane, wait until it stands there, and still its cursor."""

    async def go(pilot: Any) -> None:
        app = pilot.app
        app.animation_level = "none"
        await pilot.press(key)
        pane = f"#pane-{kind}"
        await until(pilot, lambda: app.active_pane is not None and app.active_pane.id == pane[1:])
        await until(pilot, lambda: app.focused is not None and app.active_pane in app.focused.ancestors)
        await until(pilot, lambda: settled(app))
        await still(pilot)

    return go


async def still(pilot: Any) -> None:
    """Wait until the screen stays as it is, and stop the blinking of its cursor."""
    same = 0
    while same < 3:  # layouts that ask for another
        before = lines(pilot.app)
        await pilot.pause()
        same = same + 1 if lines(pilot.app) == before else 0
    for field in pilot.app.query("Input"):
        field.cursor_blink = False
    await pilot.pause()


@pytest.mark.parametrize("size", SIZES, ids=named)
@pytest.mark.parametrize("pane", [pytest.param(name, marks=pytest.mark.panes(*only)) for name, only in ALONE.items()])
def test_pane(pane: str, size: tuple[int, int], snap_compare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    app = KvscopeApp(settings=Settings(), start_engine=False)
    assert snap_compare(app, terminal_size=size, run_before=shown_pane(PANES[pane], pane))


def worked_out(app: KvscopeApp) -> bool:
    """Whether the strip, the rows and the marks of the scales are there: they come after the pane."""
    estimate, roofline = app.query_one(EstimatePane), app.query_one(RooflinePane)
    own = estimate.is_settled if app.active_pane is estimate else roofline.is_settled
    return own and "tok/s" in "".join(app.query_one(StatusStrip).plain(200))


@pytest.mark.panes("roofline", "estimate")
@pytest.mark.parametrize("size", SIZES, ids=named)
@pytest.mark.parametrize("pane", ["roofline", "estimate"])
def test_times(pane: str, size: tuple[int, int], snap_compare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With limits and a price, on a device of which times are known."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    state = with_study(default_state(), replace(default_state().study, device=find_device("h100-sxm")))
    serving = replace(state.serving, limits=(("ttft", 0.5), ("tpot", 0.02)), price=2.5)
    app = KvscopeApp(replace(state, serving=serving), settings=Settings(), start_engine=False)
    assert snap_compare(app, terminal_size=size, run_before=shown_pane(PANES[pane], pane, worked_out))


@pytest.mark.panes("load")
@pytest.mark.parametrize("size", SIZES, ids=named)
def test_load(size: tuple[int, int], snap_compare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device of which times are known, with few requests."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("tui.form.load_fields.REQUESTS", 120)
    state = with_study(default_state(), replace(default_state().study, device=find_device("h100-sxm")))
    load = replace(state.load, limits=(("ttft", 0.5), ("tpot", 0.012)))
    app = KvscopeApp(replace(state, load=load), settings=Settings(), start_engine=False)

    def simulated(app: KvscopeApp) -> bool:
        return app.query_one(LoadPane).is_settled and "tok/s" in "".join(app.query_one(StatusStrip).plain(200))

    assert snap_compare(app, terminal_size=size, run_before=shown_pane("f12", "load", simulated))


@pytest.mark.slow
@pytest.mark.panes("generate")
@pytest.mark.parametrize("size", SIZES, ids=named)
def test_generation(size: tuple[int, int], snap_compare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text of an engine that made it up, and its times."""
    monkeypatch.delenv("NO_COLOR", raising=False)

    async def generated(pilot: Any) -> None:
        pilot.app.animation_level = "none"
        pane = await open_pane(pilot, "f7", GeneratePane)
        await pilot.press("enter")
        await until(pilot, lambda: pane.run is not None and pane.run.over)
        await still(pilot)

    assert snap_compare(live_app(), terminal_size=size, run_before=generated)


@pytest.mark.slow
@pytest.mark.panes("benchmark")
@pytest.mark.parametrize("size", SIZES, ids=named)
@pytest.mark.parametrize("key", ["e", "s", "b"])
def test_measurement(key: str, size: tuple[int, int], snap_compare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cases, latency by length and tokens per second by batch, as a fake engine says them."""
    monkeypatch.delenv("NO_COLOR", raising=False)

    async def measured(pilot: Any) -> None:
        pilot.app.animation_level = "none"
        pane = await open_pane(pilot, "f8", BenchmarkPane)
        await pilot.press(key)
        await until(pilot, lambda: pane.job is not None and pane.job.over)
        await still(pilot)

    assert snap_compare(live_app(), terminal_size=size, run_before=measured)


@pytest.mark.slow
@pytest.mark.panes("memory")
@pytest.mark.parametrize("size", SIZES, ids=named)
@pytest.mark.parametrize("pane", ["spec", "memory"])
def test_hybrid(pane: str, size: tuple[int, int], snap_compare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    state = default_state()
    study = replace(state.study, model=hybrid(), device=find_device("h100-sxm"))
    app = KvscopeApp(with_study(state, study), settings=Settings(), start_engine=False)
    assert snap_compare(app, terminal_size=size, run_before=shown_pane(PANES[pane], pane))
