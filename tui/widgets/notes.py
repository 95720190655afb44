"""Sentences as a list with a hanging indent, wrapped to the available width."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text
from textual.geometry import Size
from textual.widget import Widget

from tui.widgets.derivation import wrap

LEAST_CELLS = 16


def note_lines(notes: Sequence[str], width: int) -> list[str]:
    """The lines of all notes, each note starting with a dot."""
    return [line for note in notes for line in wrap(f"· {note}", max(LEAST_CELLS, width), hang=2)]


class Notes(Widget):
    """Shows sentences; laid out again only if the number of lines changes."""

    DEFAULT_CSS = "Notes { height: auto; }"

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._notes: tuple[str, ...] = ()

    def show(self, notes: Sequence[str]) -> None:
        """Show `notes`."""
        if tuple(notes) != self._notes:
            before = len(note_lines(self._notes, self.content_size.width))
            self._notes = tuple(notes)
            self.refresh(layout=before != len(note_lines(self._notes, self.content_size.width)))

    def render(self) -> Text:
        return Text("\n".join(note_lines(self._notes, self.content_size.width)), no_wrap=True)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """As many lines as the notes take."""
        return len(note_lines(self._notes, width))
