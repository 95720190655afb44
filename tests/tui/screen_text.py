"""What stands on the screen of an app under test, as lines of text."""

from __future__ import annotations

from textual.app import App
from textual.pilot import Pilot


def lines(app: App[None]) -> list[str]:
    """The visible screen, one string per row."""
    return [strip.text.rstrip() for strip in app.screen._compositor.render_strips()]


def text(app: App[None]) -> str:
    """The visible screen as one string."""
    return "\n".join(lines(app))


async def type_into(pilot: Pilot[None], selector: str, value: str) -> None:
    """Focus a field, empty it, and type `value` key by key."""
    pilot.app.query_one(selector).focus()
    await pilot.press("end", "ctrl+u", *[NAMES.get(c, c) for c in value])
    await pilot.pause()


NAMES = {
    " ": "space", ".": "full_stop", ",": "comma", "/": "slash", "-": "minus", "_": "underscore", "~": "tilde",
}  # fmt: skip
