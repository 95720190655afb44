"""A Static that does only what a change needs: nothing when it shows the same, a new layout when it is taller."""

from __future__ import annotations

from collections.abc import Callable

from textual.visual import VisualType
from textual.widgets import Static


class Shown(Static):
    """Shows what `build` makes of a value; built again only for another value."""

    DEFAULT_CSS = "Shown { height: auto; }"

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id, markup=False)
        self._key: object = None

    def show(self, key: object, build: Callable[[], VisualType]) -> None:
        """Show `build()`, unless `key` is what is shown already."""
        if key == self._key:
            return
        self._key = key
        self.update(build(), layout=False)
        width, height = self.content_size
        if not width or self.get_content_height(self.container_size, self.app.size, width) != height:
            self.refresh(layout=True)
