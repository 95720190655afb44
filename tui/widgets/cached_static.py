"""Text that is drawn at the width of its widget, and drawn again only when its subject or that width changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from textual.geometry import Size
from textual.visual import Visual, VisualType, visualize
from textual.widget import Widget

if TYPE_CHECKING:
    from textual.css.styles import RulesMap

Build = Callable[[int], VisualType]
"""Draws the text for a width in cells."""


class CachedStatic(Widget):
    """Shows what a function of the width draws. A change moves other widgets only if it changes the height."""

    DEFAULT_CSS = "CachedStatic { height: auto; }"

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._key: object = None
        self._build: Build = lambda _: ""
        self._drawn: tuple[int, Visual] | None = None

    def show(self, key: object, build: Build) -> None:
        """Show what `build` draws, unless `key` is already shown."""
        if key == self._key:
            return
        self._key, self._build, self._drawn = key, build, None
        width, height = self.content_size
        self.refresh(layout=not width or self._height(width) != height)

    def _at(self, width: int) -> Visual:
        if self._drawn is None or self._drawn[0] != width:
            self._drawn = width, visualize(self, self._build(width), markup=False)
        return self._drawn[1]

    def _height(self, width: int) -> int:
        return self._at(width).get_height(cast("RulesMap", self.styles), width)

    def render(self) -> Visual:
        return self._at(self.content_size.width)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """The lines of the text at `width`."""
        return self._height(width)
