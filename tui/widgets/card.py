"""A titled frame around widgets that belong together."""

from __future__ import annotations

from textual.containers import VerticalGroup
from textual.widget import Widget


def card(title: str, *children: Widget, id: str | None = None) -> VerticalGroup:  # noqa: A002
    """`children` in a frame with `title`; it lights up while one of them has the focus."""
    group = VerticalGroup(*children, id=id, classes="card")
    group.border_title = title
    return group
