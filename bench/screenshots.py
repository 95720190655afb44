"""Pictures of the app for the documents: one SVG per pane, rendered by the app itself.

.venv/bin/python bench/screenshots.py [FOLDER]      (docs/ by default)
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from calc.sources.catalog import find_device
from tui.app.app import KvscopeApp, default_state
from tui.app.settings import Settings
from tui.form.state import AppState, with_study

SIZE = (120, 40)
PANES = {"f2": "kvscope", "f3": "memory", "f4": "intensity"}
TIMED = {"f5": "roofline", "f6": "estimate"}
"""Panes that need a device of which times are known."""


async def take(folder: Path) -> None:
    """Write the pictures."""
    await _pictures(default_state(), PANES, folder)
    state = default_state()
    state = with_study(state, replace(state.study, device=find_device("h100-sxm")))
    serving = replace(state.serving, limits=(("ttft", 0.5), ("tpot", 0.02)), price=2.5)
    await _pictures(replace(state, serving=serving), TIMED, folder)


async def _pictures(state: AppState, panes: Mapping[str, str], folder: Path) -> None:
    app = KvscopeApp(state, settings=Settings(), start_engine=False)
    async with app.run_test(size=SIZE) as pilot:
        for key, name in panes.items():
            await pilot.press(key)
            await pilot.pause(2.0)
            path = folder / f"{name}.svg"
            path.write_text(app.export_screenshot(title="kvscope"), encoding="utf-8")
            print(path)


if __name__ == "__main__":
    asyncio.run(take(Path(sys.argv[1] if len(sys.argv) > 1 else "docs")))
