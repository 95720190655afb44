"""The line of tabs: which title a cell belongs to, and what is left out where not all fit."""

from __future__ import annotations

import pytest
from textual.app import App, ComposeResult
from textual.widgets import Label

from tests.tui.live_engine import until
from tests.tui.screen_text import lines
from tui.widgets.tabs import TabLine, Tabs

TITLES = ("Spec", "Memory", "Load")


class ThreePanes(App[None]):
    """Tabs with a label in each pane."""

    def compose(self) -> ComposeResult:
        yield Tabs(TITLES, Label("first", id="pane-spec"), id="tabs")


async def test_tabs_show_one_pane_and_mark_it() -> None:
    app = ThreePanes()
    async with app.run_test(size=(30, 6)) as pilot:
        tabs = app.query_one(Tabs)
        await tabs.add(Label("second", id="pane-memory"))
        assert lines(app)[:3] == [" Spec  Memory  Load", "╸━━━━╺" + "━" * 24, "first"]
        await pilot.click(TabLine, offset=(8, 1))
        await until(pilot, lambda: lines(app)[2] == "second")
        assert lines(app)[1] == "━━━━━━╸━━━━━━╺" + "━" * 16
        tabs.active = "load"
        await until(pilot, lambda: lines(app)[2] == "")
        await tabs.add(Label("third", id="pane-load"))
        await until(pilot, lambda: lines(app)[2] == "third")
        app.query_one(TabLine).focus()
        await pilot.press("right")
        await until(pilot, lambda: lines(app)[2] == "first")
        await pilot.press("left", "left")
        await until(pilot, lambda: tabs.active == "memory")


@pytest.mark.parametrize(("active", "shown"), [(0, " Spec  Memor"), (1, "c  Memory  L"), (2, "emory  Load ")])
async def test_the_active_title_is_seen_where_not_all_fit(active: int, shown: str) -> None:
    app = ThreePanes()
    async with app.run_test(size=(12, 6)) as pilot:
        app.query_one(Tabs).active = TITLES[active].lower()
        await until(pilot, lambda: lines(app)[0] == shown.rstrip())
        await pilot.click(TabLine, offset=(6, 0))
        await until(pilot, lambda: app.query_one(Tabs).active == "memory" or active == 2)
