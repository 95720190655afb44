"""The tabs: a line of titles above a rule, and below them the panes, of which one is shown.

Titles and rule are one widget. Textual's own tabs need two widgets per title and six more, all styled and laid out
before the first paint.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import ClassVar

from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.message import Message
from textual.widget import Widget

from tui.widgets.styling import restyled

THICK, LEFT_HALF, RIGHT_HALF = "━", "╸", "╺"


class TabLine(Widget, can_focus=True):
    """Titles, of which one is active. ← → or a click choose another. If not all fit, the active one stays visible."""

    ALLOW_SELECT = False
    DEFAULT_CSS = """
    TabLine {
        height: 2; background: $background; color: $foreground 50%; pointer: pointer; text-wrap: nowrap;
        & > .tab--active { color: $foreground; }
        & > .tab--under { color: $block-cursor-background; }
        & > .tab--rule { color: $foreground 10%; }
        &:focus > .tab--active { color: $text-primary; text-style: bold reverse; }
        &:focus > .tab--rule { color: $foreground 30%; }
    }
    """
    COMPONENT_CLASSES: ClassVar[set[str]] = {"tab--active", "tab--under", "tab--rule"}
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "turn(-1)", "Previous tab", show=False),
        Binding("right", "turn(1)", "Next tab", show=False),
    ]

    class Chosen(Message):
        """A title was chosen; `clicked`: with the mouse."""

        def __init__(self, index: int, *, clicked: bool = False) -> None:
            super().__init__()
            self.index, self.clicked = index, clicked

    def __init__(self, titles: Sequence[str]) -> None:
        super().__init__()
        self._titles = tuple(titles)
        self._active = 0

    def show(self, index: int) -> None:
        """Mark the title `index` as active."""
        self._active = index
        self.refresh()

    def starts(self) -> list[int]:
        """The cell where each title begins, its blank before it included, and where the last one ends."""
        return list(accumulate((len(title) + 2 for title in self._titles), initial=0))

    def scrolled(self, width: int) -> int:
        """Cells cut off on the left so that the active title is visible in `width` cells."""
        starts = self.starts()
        first, last = starts[self._active : self._active + 2]
        return max(0, min(starts[-1] - width, (first + last - width) // 2))

    def render(self) -> Text:
        width = self.content_size.width
        text = Text(no_wrap=True)
        for i, title in enumerate(self._titles):
            text.append(f" {title} ", "active" if i == self._active else "")
        first, last = self.starts()[self._active : self._active + 2]
        rule = Text.assemble(
            (f"{THICK * first}{LEFT_HALF}", "rule"),
            (THICK * (last - first - 2), "under"),
            (f"{RIGHT_HALF}{THICK * (max(width, len(text)) - last)}", "rule"),
        )
        hidden = self.scrolled(width)
        shown = text[hidden : hidden + width]
        return restyled(Text("\n", no_wrap=True).join((shown, rule[hidden : hidden + width])), self, "tab")

    def on_click(self, event: events.Click) -> None:
        """Choose the title, or the part of the rule below it, that was clicked."""
        cell = event.x - self.gutter.left + self.scrolled(self.content_size.width)
        for index, start in enumerate(self.starts()[1:]):
            if cell < start:
                self.post_message(self.Chosen(index, clicked=True))
                return

    def action_turn(self, by: int) -> None:
        """Choose the next title, or the one before."""
        self.post_message(self.Chosen((self._active + by) % len(self._titles)))


class Tabs(Container):
    """Panes whose ids are ``pane-`` and their title in lower case, and their titles above them."""

    DEFAULT_CSS = "Tabs { height: 1fr; }"

    class Activated(Message):
        """Another pane is shown."""

    class Entered(Message):
        """A pane's title was clicked: what is typed next is meant for the pane."""

    def __init__(self, titles: Sequence[str], first: Widget, *, id: str) -> None:  # noqa: A002
        """`first` is the pane of the first title; the others are added."""
        self._line = TabLine(titles)
        self._names = tuple(title.lower() for title in titles)
        self._active = self._names[0]
        super().__init__(self._line, first, id=id)

    @property
    def active(self) -> str:
        """The name of the pane that is shown, or will be as soon as it is mounted."""
        return self._active

    @active.setter
    def active(self, name: str) -> None:
        if name == self._active:
            return
        self._active = name
        self._line.show(self._names.index(name))
        for pane in self.children[1:]:
            pane.display = pane.id == f"pane-{name}"
        self.post_message(self.Activated())

    async def add(self, pane: Widget) -> None:
        """Mount a pane; it is shown if it is the active one."""
        pane.display = pane.id == f"pane-{self._active}"
        await self.mount(pane)

    def on_tab_line_chosen(self, event: TabLine.Chosen) -> None:
        """Show the pane of the title."""
        event.stop()
        self.active = self._names[event.index]
        if event.clicked:
            self.post_message(self.Entered())
