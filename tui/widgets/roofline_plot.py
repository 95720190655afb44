"""The roofline's plot: arrows and dragging move its batch and context."""

from __future__ import annotations

from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message

from tui.widgets.plot import PlotView

CELLS_PER_DOUBLING = 6, 3
"""How far the mouse moves, across and up, to double the batch and the context."""


class RooflinePlot(PlotView, can_focus=True):
    """Posts `Moved`: the doublings of batch and context that the user requests."""

    DEFAULT_CSS = "RooflinePlot:focus { background: $primary 8%; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "move(-1, 0)", "batch", show=False, tooltip="Half the batch"),
        Binding("right", "move(1, 0)", "batch", show=False, tooltip="Twice the batch"),
        Binding("up", "move(0, 1)", "context", show=False, tooltip="Twice the context"),
        Binding("down", "move(0, -1)", "context", show=False, tooltip="Half the context"),
    ]
    help = "← → halve and double the batch, ↑ ↓ change the context; dragging changes both"
    label = "Plot"

    class Moved(Message):
        """Doublings of batch and context since the drag started; `begins` marks the first of a drag, or a key."""

        def __init__(self, batch: float, context: float, *, begins: bool) -> None:
            super().__init__()
            self.batch, self.context, self.begins = batch, context, begins

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._grabbed: tuple[int, int] | None = None

    def action_move(self, batch: int, context: int) -> None:
        """A key: one doubling or halving."""
        self.post_message(self.Moved(batch, context, begins=True))

    def on_mouse_down(self, event: events.MouseDown) -> None:
        """Start dragging."""
        self._grabbed = event.screen_x, event.screen_y
        self.capture_mouse()
        self.post_message(self.Moved(0, 0, begins=True))

    def on_mouse_move(self, event: events.MouseMove) -> None:
        """Drag: right for a larger batch, up for a longer context."""
        if self._grabbed is not None:
            across, up = event.screen_x - self._grabbed[0], self._grabbed[1] - event.screen_y
            wide, high = CELLS_PER_DOUBLING
            self.post_message(self.Moved(across / wide, up / high, begins=False))

    def on_mouse_up(self) -> None:
        """Stop dragging."""
        self._grabbed = None
        self.release_mouse()
