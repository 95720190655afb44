"""Pictures of the panes at three sizes, compared cell by cell."""

from __future__ import annotations

from typing import Any

import pytest

from tui.app import KvscopeApp
from tui.settings import Settings

SIZES = [(80, 24), (120, 40), (200, 60)]
PANES = {"spec": "f2", "memory": "f3", "intensity": "f4"}


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("pane", PANES)
def test_pane(pane: str, size: tuple[int, int], snap_compare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)

    async def go(pilot: Any) -> None:
        await pilot.press(PANES[pane])
        await pilot.pause(0.5)
        for field in pilot.app.query("Input"):
            field.cursor_blink = False

    app = KvscopeApp(settings=Settings(), start_engine=False)
    assert snap_compare(app, terminal_size=size, run_before=go)
