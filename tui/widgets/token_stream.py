"""Text that grows at its end, wrapped at words, for streamed tokens.

Only the last line is wrapped again when text arrives, and only changed lines are drawn, so a thousand tokens per tick
cost only what they add. Textual's Log does not wrap, its TextArea is an editor, and its Markdown slows down as it
grows.
"""

from __future__ import annotations

from bisect import bisect_right

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.geometry import Region, Size
from textual.scroll_view import ScrollView
from textual.selection import Selection
from textual.strip import Strip
from textual.widget import Widget

from calc.plain import plain

KINDS = ("prompt", "text", "note")


class TokenStream(ScrollView, can_focus=True):
    """`write` adds text of a kind: the prompt, what the model made, or a note. Follows the end unless scrolled up."""

    ALLOW_SELECT = True
    COMPONENT_CLASSES = {f"token-stream--{kind}" for kind in KINDS}  # noqa: RUF012
    DEFAULT_CSS = """
    TokenStream {
        background: $surface; color: $foreground; overflow-x: hidden; overflow-y: auto;
        scrollbar-gutter: stable; padding: 0 1;
        & .token-stream--prompt { color: $text-muted; }
        & .token-stream--text { color: $foreground; }
        & .token-stream--note { color: $text-muted; text-style: italic; }
        &:focus { background-tint: $foreground 4%; }
    }
    """

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id, classes=classes)
        self._pieces: list[tuple[str, str]] = []
        self._lines: list[str] = [""]
        self._marks: list[tuple[int, int, str]] = []
        """Where each kind starts: line, column, kind; in order."""
        self._height = 0
        self._wrap_width = 0
        self._looks: dict[str, Style] = {}

    @property
    def text(self) -> str:
        """All text, unwrapped."""
        return "".join(text for _, text in self._pieces)

    @property
    def lines(self) -> tuple[str, ...]:
        """The lines as currently wrapped."""
        return tuple(self._lines)

    def clear(self) -> None:
        """Clear everything."""
        self._pieces.clear()
        self._reset()
        self.virtual_size = Size(0, 0)
        self.refresh()

    def write(self, text: str, kind: str = "text") -> None:
        """Add `text` at the end."""
        text = plain(text.replace("\r\n", "\n")).expandtabs(4)
        if not text:
            return
        self._pieces.append((kind, text))
        first = len(self._lines) - 1
        following = self.is_vertical_scroll_end
        self._add(text, kind)
        self._show_from(first, following=following)

    # --- wrapping -----------------------------------------------------------------------------------------

    def _reset(self) -> None:
        self._lines, self._marks = [""], []

    def _add(self, text: str, kind: str) -> None:
        if not self._marks or self._marks[-1][2] != kind:
            self._marks.append((len(self._lines) - 1, len(self._lines[-1]), kind))
        for i, part in enumerate(text.split("\n")):
            if i:
                self._lines.append("")
            self._lines[-1] += part
            self._wrap_last()

    def _wrap_last(self) -> None:
        """Wrap the last line until it fits; kinds that start after a break move with their text."""
        width = self._wrap_width
        if width < 1:
            return
        while (at := _break(self._lines[-1], width)) is not None:
            line = len(self._lines) - 1
            text = self._lines[-1]
            self._lines[-1:] = [text[:at], text[at:]]
            self._marks = [
                (line + 1, column - at, kind) if row == line and column >= at else (row, column, kind)
                for row, column, kind in self._marks
            ]

    def _wrap_all(self) -> None:
        self._reset()
        for kind, text in self._pieces:
            self._add(text, kind)

    def _show_from(self, first: int, *, following: bool) -> None:
        if self._wrap_width < 1:
            return
        self._grow(Size(self._wrap_width, len(self._lines)))
        self.refresh_lines(first, len(self._lines) - first)
        if following:
            self._to_end()

    def _to_end(self) -> None:
        self.scroll_end(animate=False, immediate=True, x_axis=False, force=True)
        self.vertical_scrollbar.position = self.scroll_y  # Textual tells only a bar that is shown already

    def _grow(self, size: Size) -> None:
        """Set a new size. Setting `virtual_size` lays out the whole screen, so only if a scrollbar appears or
        disappears."""
        height = self.scrollable_content_region.height
        if (self.virtual_size.height > height) != (size.height > height) or size.width != self.virtual_size.width:
            self.virtual_size = size
        elif size != self.virtual_size:
            self.set_reactive(Widget.virtual_size, size)
            self.vertical_scrollbar.window_virtual_size = size.height

    def on_resize(self, event: events.Resize) -> None:
        """Wrap everything again if the width changes; a view at the end stays there."""
        width, height = self.scrollable_content_region.size
        following = self.scroll_offset.y + self._height >= len(self._lines)
        self._height = height
        if width != self._wrap_width and width > 0:
            self._wrap_width = width
            self._wrap_all()
            self._show_from(0, following=following)
            self.refresh()
        elif following:
            self._to_end()

    # --- drawing ------------------------------------------------------------------------------------------

    def render_lines(self, crop: Region) -> list[Strip]:
        """Styles are computed once for all lines: Textual combines them through all parent widgets."""
        self._looks = {kind: self.get_component_rich_style(f"token-stream--{kind}") for kind in KINDS}
        self._looks[""] = self.rich_style
        return super().render_lines(crop)

    def render_line(self, y: int) -> Strip:
        line = self.scroll_offset.y + y
        width = self.scrollable_content_region.width
        if line >= len(self._lines):
            return Strip.blank(width, self._looks[""])
        segments = [Segment(text, self._looks[kind]) for text, kind in self._runs(line)]
        strip = Strip(segments).adjust_cell_length(width, self._looks[""])
        return self._selected(strip, line).apply_offsets(0, line)

    def _runs(self, line: int) -> list[tuple[str, str]]:
        """The line's text in pieces of one kind."""
        text = self._lines[line]
        at = bisect_right(self._marks, (line, 0, "￿")) - 1
        kind = self._marks[at][2] if at >= 0 else "text"
        runs, start = [], 0
        for _, column, following in (m for m in self._marks[at + 1 :] if m[0] == line):
            runs.append((text[start:column], kind))
            kind, start = following, column
        return [*runs, (text[start:], kind)]

    def _selected(self, strip: Strip, line: int) -> Strip:
        selection = self.text_selection
        span = selection.get_span(line) if selection is not None else None
        if span is None:
            return strip
        start, end = span
        end = strip.cell_length if end == -1 else end
        style = self.screen.get_component_rich_style("screen--selection")
        chosen = strip.crop(start, end).apply_style(style)
        return Strip.join([strip.crop(0, start), chosen, strip.crop(end)])

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        """The selected text, as lines are shown."""
        return selection.extract("\n".join(self._lines)), "\n"

    def selection_updated(self, selection: Selection | None) -> None:
        self.refresh()


def _break(text: str, width: int) -> int | None:
    """Where to break `text` so that its first part fits in `width` cells; None if all of it fits.

    After the last space that fits (the space itself may exceed the width), else inside the word.
    """
    if text.isascii():
        if len(text) <= width:
            return None
        limit = width
    else:
        if cell_len(text) <= width:
            return None
        limit = max(1, len(set_cell_size(text, width).rstrip()))
        while limit > 1 and cell_len(text[:limit]) > width:
            limit -= 1
    space = text.rfind(" ", 0, limit + 1)
    at = space + 1 if space >= 0 and text[: space + 1].strip() else limit
    return at if at < len(text) else None
