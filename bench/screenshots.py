"""Pictures of the app for the documents: one SVG a pane, made by the app itself.

.venv/bin/python bench/screenshots.py [FOLDER]      (docs/ by default)
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tui.app.app import KvscopeApp
from tui.app.settings import Settings

SIZE = (120, 40)
PANES = {"f2": "kvscope", "f3": "memory", "f4": "intensity"}


async def take(folder: Path) -> None:
    """Write the pictures."""
    app = KvscopeApp(settings=Settings(), start_engine=False)
    async with app.run_test(size=SIZE) as pilot:
        for key, name in PANES.items():
            await pilot.press(key)
            await pilot.pause(1.0)
            path = folder / f"{name}.svg"
            path.write_text(app.export_screenshot(title="kvscope"), encoding="utf-8")
            print(path)


if __name__ == "__main__":
    asyncio.run(take(Path(sys.argv[1] if len(sys.argv) > 1 else "docs")))
