"""A titled frame around widgets that belong together."""

from __future__ import annotations

from textual.containers import VerticalGroup
from textual.widget import Widget


class Card(VerticalGroup):
    """A frame that lights up while one of its widgets has the focus.

    It sets a class that only its own style uses: with ``:focus-within``, Textual would restyle every widget in the
    frame at each focus change.
    """

    def on_descendant_focus(self) -> None:
        """Highlight the frame."""
        self._follow_focus()

    def on_descendant_blur(self) -> None:
        """Remove the highlight, unless the focus has moved within the frame."""
        self._follow_focus()

    def _follow_focus(self) -> None:
        lit = self.has_focus_within
        if lit != self.has_class("-lit"):
            self.set_class(lit, "-lit", update=False)
            self.app.stylesheet.update_nodes([self], animate=True)


def card(title: str, *children: Widget, id: str | None = None) -> Card:  # noqa: A002
    """`children` in a frame with `title`."""
    framed = Card(*children, id=id, classes="card")
    framed.border_title = title
    return framed
