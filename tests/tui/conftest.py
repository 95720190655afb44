"""How tests of the app wait and which panes it opens: whole at first, as for a person a moment after the start."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from textual.app import App
from textual.pilot import Pilot

import tui.app.app
from tests.patience import PATIENCE_S
from tui.app.app import KvscopeApp
from tui.panes.base import Pane

_run_test = App.run_test


@asynccontextmanager
async def _whole(app: KvscopeApp, **options: Any) -> AsyncGenerator[Pilot[None], None]:
    """The app with all its panes, left as a user leaves it.

    Textual takes a tested app down while workers run on; a user leaves by a message, and they are cancelled.
    """
    async with _run_test(app, **options) as pilot:
        while not app.is_whole:
            assert app.is_running
            await asyncio.sleep(0.01)
        await pilot.pause()
        try:
            yield pilot
        finally:
            if not app._exit:
                app.exit()
            if app._task is not None:
                await asyncio.wait([app._task], timeout=PATIENCE_S)


@pytest.fixture(autouse=True)
def _whole_apps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KvscopeApp, "run_test", _whole)


@pytest.fixture(autouse=True)
def _panes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """``@pytest.mark.panes("memory")``: the app mounts that pane beside Spec, which takes half the time of all."""
    marker = request.node.get_closest_marker("panes")
    if marker is not None:
        made = tui.app.app.later_panes

        def chosen() -> Iterator[Pane]:
            return (pane for pane in made() if pane.TITLE.lower() in marker.args)

        monkeypatch.setattr(tui.app.app, "later_panes", chosen)
