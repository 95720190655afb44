"""How tests run the app: left as a user leaves it, and at first whole, as for a person a moment after the start."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from textual.app import App
from textual.pilot import Pilot

from tests.patience import PATIENCE_S
from tui.app.app import KvscopeApp

_run_test = App.run_test


@asynccontextmanager
async def from_the_start(app: KvscopeApp, **options: Any) -> AsyncGenerator[Pilot[None], None]:
    """The app while its panes are still being made.

    Textual takes a tested app down while workers run on; a user leaves by a message, and they are cancelled.
    """
    async with _run_test(app, **options) as pilot:
        try:
            yield pilot
        finally:
            if not app._exit:
                app.exit()
            if app._task is not None:
                await asyncio.wait([app._task], timeout=PATIENCE_S)


@asynccontextmanager
async def whole(app: KvscopeApp, **options: Any) -> AsyncGenerator[Pilot[None], None]:
    """The app with all its panes."""
    async with from_the_start(app, **options) as pilot:
        while not app.is_whole:
            assert app.is_running
            await asyncio.sleep(0.01)
        await pilot.pause()
        yield pilot
