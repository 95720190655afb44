"""The mouse on the track of a dial: what a click and a drag do, whatever the track represents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual import events

if TYPE_CHECKING:
    from tui.widgets.dial import Dial as _Base
else:
    # Not a second widget base class: Textual would read the styles and bindings of only the first base.
    _Base = object


class Track(_Base):
    """A dial with a track, which captures the mouse from a click until the button is released. Comes before `Dial` in
    the bases.

    The dial says where its `track` is and takes a cell of it with `drag_to`; without a track `cells` is 0.
    """

    _dragged = False

    @property
    def track(self) -> tuple[int, int]:
        """The first cell of the track in the dial, and how many cells it has."""
        raise NotImplementedError

    def drag_to(self, cell: int) -> None:
        """Take the value of a cell of the track; it may be past either end."""
        raise NotImplementedError

    def on_mouse_down(self, event: events.MouseDown) -> None:
        """Capture the mouse."""
        cell = self._cell(event)
        if 0 <= cell < self.track[1]:
            self._dragged = True
            self.capture_mouse()
            self.drag_to(cell)
            event.stop()

    def on_mouse_move(self, event: events.MouseMove) -> None:
        """Follow the mouse while it is held."""
        if self._dragged:
            self.drag_to(self._cell(event))
            event.stop()

    def on_mouse_up(self, event: events.MouseUp) -> None:
        """Release the mouse."""
        if self._dragged:
            self._dragged = False
            self.release_mouse()
            event.stop()

    def _cell(self, event: events.MouseEvent) -> int:
        return event.x - self.gutter.left - self.track[0]
