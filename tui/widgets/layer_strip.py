"""The layers of a model, one cell each: what a layer caches, and below it the kind of its feed-forward."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.geometry import Size
from textual.widget import Widget

from tui.views.layer_map import LABEL_CELLS, STYLES, LayerMap, map_lines
from tui.widgets.styling import restyled

UNORDERED = "the number of each kind is known, but not their order"


def strip_text(found: LayerMap, width: int, *, legend: bool = False) -> Text:
    """The map for `width` cells; with a line of the marks if there is no table of them."""
    text = Text(no_wrap=True)
    for i, (label, cells, _) in enumerate(map_lines(found, width)):
        text.append("\n" if i else "").append(label, "label")
        for mark in cells:
            text.append(mark, STYLES.get(mark, "plain"))
    if not found.ordered:
        text.append(f"\n{' ' * LABEL_CELLS}{UNORDERED}", "label")
    if legend:
        for kind in found.kinds:
            text.append("\n").append(kind.mark, STYLES.get(kind.mark, "plain"))
            line = f" {kind.layers:,} × {kind.label}"
            text.append(line if len(line) < width else f"{line[: width - 2]}…")
    return text


class LayerStrip(Widget):
    """Shows a `LayerMap`; hidden if there is none."""

    DEFAULT_CSS = """
    LayerStrip {
        height: auto; display: none;
        &.-shown { display: block; }
        & > .map--label { color: $foreground 70%; }
        & > .map--plain { color: $foreground 70%; }
        & > .map--full { color: $primary; }
        & > .map--window { color: $accent; }
        & > .map--latent { color: $success; }
        & > .map--state { color: $warning; }
        & > .map--both { color: $secondary; }
        & > .map--experts { color: $foreground 80%; }
    }
    """
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        f"map--{name}" for name in ("label", "plain", "full", "window", "latent", "state", "both", "experts")
    }

    def __init__(self, *, legend: bool = False, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._map: LayerMap | None = None
        self._legend = legend

    def show(self, found: LayerMap | None) -> None:
        """Show `found`, or nothing."""
        if found != self._map:
            self._map = found
            self.set_class(found is not None, "-shown")
            self.refresh(layout=True)

    def render(self) -> Text:
        if self._map is None:
            return Text("")
        return restyled(strip_text(self._map, max(LABEL_CELLS + 1, self.content_size.width), legend=self._legend),
                        self, "map")  # fmt: skip

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        if self._map is None:
            return 0
        return strip_text(self._map, max(LABEL_CELLS + 1, width), legend=self._legend).plain.count("\n") + 1
