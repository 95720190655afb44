"""The screen of the panes."""

from __future__ import annotations

from textual import events
from textual.screen import Screen


class PanesScreen(Screen[object]):
    """Mounted widgets already have their style: Textual would style them again when the screen first appears."""

    _appeared = False

    def on_screen_resume(self, event: events.ScreenResume) -> None:
        """Runs before Textual's own handler."""
        event.refresh_styles = event.refresh_styles and self._appeared
        self._appeared = True
