"""Pages of a pane: on a narrow screen its parts are shown one at a time."""

from __future__ import annotations

from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.widget import Widget
from textual.widgets import Label

from tui.panes.base import Pane

NEXT_PAGE: tuple[BindingType, ...] = (
    Binding("ctrl+n", "next_page", "page", tooltip="Show the next page of this pane"),
    Binding("p", "next_page", "page", show=False),
)
PICK_DEVICE = Binding("d", "app.pick_device", "device", tooltip="Choose a device from the catalog")


class PagedPane(Pane):
    """A pane whose parts have classes ``page-0``, ``page-1`` …; its style shows those of the class ``-page-N``.

    It composes `page_label`, which shows the current page.
    """

    PAGES: ClassVar[tuple[str, ...]]

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id, classes=classes)
        self.page = 0

    def page_label(self) -> Label:
        """The line that shows the current page."""
        return Label("", classes="page-label")

    def first_focus(self) -> Widget:
        """The widget that gets the focus on the current page."""
        raise NotImplementedError

    def action_next_page(self) -> None:
        """Turn the page; the focus moves along if it would be hidden."""
        self.show_page((self.page + 1) % len(self.PAGES))
        self.call_after_refresh(self.keep_focus)

    def keep_focus(self) -> None:
        """Move the focus to the visible page, unless it is already there."""
        focused = self.screen.focused
        if focused is None or not is_shown(focused):
            self.first_focus().focus()

    def show_page(self, page: int) -> None:
        """Show a page."""
        self.remove_class(f"-page-{self.page}").add_class(f"-page-{page}")
        self.page = page
        words = f"page {page + 1} of {len(self.PAGES)}: {self.PAGES[page]} · ^n: next page"
        self.query_one(".page-label", Label).update(words)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Pages exist only on narrow screens, and are not turned under a list or the help."""
        if action == "next_page":
            return self.screen.has_class("-narrow") and self.app.screen is self.screen
        return True


def is_shown(widget: Widget) -> bool:
    """Whether a widget and all its parents are visible."""
    return all(node.display for node in widget.ancestors_with_self if isinstance(node, Widget))
