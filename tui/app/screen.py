"""The screen of the panes."""

from __future__ import annotations

from textual import events
from textual.screen import Screen


class PanesScreen(Screen[object]):
    """What is mounted has its style: Textual would style all of it a second time when the screen first appears."""

    _appeared = False

    def on_screen_resume(self, event: events.ScreenResume) -> None:
        """Before Textual's own answer to the event."""
        event.refresh_styles = event.refresh_styles and self._appeared
        self._appeared = True
