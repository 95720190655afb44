"""What the tests of the live panes share: an app with the fake engine, and waiting for what is to come."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from textual.pilot import Pilot
from textual.widget import Widget

from tests.patience import PATIENCE_S
from tui.app.app import KvscopeApp
from tui.app.settings import Settings

FAKE = Path(__file__).with_name("fake_engine.py")
W = TypeVar("W", bound=Widget)
SIZES = [
    (120, 40),
    pytest.param((80, 24), marks=pytest.mark.slow),
    pytest.param((200, 60), marks=pytest.mark.slow),
]
"""The screens that a pane is tried on; the fast suite takes the first."""


def fake_engine(*options: str) -> list[str]:
    """The command of the fake engine."""
    return [sys.executable, str(FAKE), *options]


def live_app(*options: str, start_engine: bool = True) -> KvscopeApp:
    """The app with default settings, none read or written, and the fake engine."""
    return KvscopeApp(None, Settings(), fake_engine(*options), start_engine=start_engine)


async def until(pilot: Pilot[None], condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds; fail when it never does."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "what was waited for did not come"
        await asyncio.sleep(0.01)
    await pilot.pause()


async def open_pane(pilot: Pilot[None], key: str, kind: type[W]) -> W:
    """Show a pane by its function key and give it once it is mounted."""
    app = pilot.app
    await until(pilot, lambda: bool(app.query(kind)))
    await pilot.press(key)
    await until(pilot, lambda: app.query_one(kind).is_on_screen)
    await asyncio.sleep(0)
    return app.query_one(kind)
