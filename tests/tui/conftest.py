"""Tests of the app find all panes there, as a person does a moment after the start."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from textual.app import App
from textual.pilot import Pilot

from tui.app.app import KvscopeApp

_run_test = App.run_test


@asynccontextmanager
async def _whole(app: KvscopeApp, **options: Any) -> AsyncGenerator[Pilot[None], None]:
    async with _run_test(app, **options) as pilot:
        while not app.is_whole:
            assert app.is_running
            await asyncio.sleep(0.01)
        await pilot.pause()
        yield pilot


@pytest.fixture(autouse=True)
def _whole_apps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KvscopeApp, "run_test", _whole)
