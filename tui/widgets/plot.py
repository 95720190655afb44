"""A plot in the app: redrawn from its chart whenever its size, marker or theme is another one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text
from textual.color import Color, ColorParseError
from textual.widget import Widget

from tui.chart import Chart, Colours, Marker, Rgb, draw

if TYPE_CHECKING:
    from collections.abc import Mapping

SERIES_VARIABLES = ("success", "warning", "accent", "secondary", "error")
_FALLBACK: Rgb = (160, 160, 160)


def theme_colours(variables: Mapping[str, str]) -> Colours:
    """Colours of a plot from the variables of a theme."""

    def rgb(name: str) -> Rgb:
        try:
            return Color.parse(variables[name]).rgb
        except (KeyError, ColorParseError):
            return _FALLBACK

    return Colours(
        axes=rgb("foreground-muted"),
        text=rgb("foreground"),
        line=rgb("primary"),
        series=tuple(rgb(name) for name in SERIES_VARIABLES),
    )


class PlotView(Widget):
    """Shows a `Chart` in whatever space it has."""

    DEFAULT_CSS = "PlotView { height: 1fr; min-height: 3; }"

    def __init__(self, chart: Chart | None = None, *, id: str | None = None, classes: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id, classes=classes)
        self._chart = chart
        self._drawn: tuple[object, Text] | None = None

    @property
    def chart(self) -> Chart | None:
        """What is shown."""
        return self._chart

    def show(self, chart: Chart) -> None:
        """Show `chart`; draws only when it differs."""
        if chart != self._chart:
            self._chart = chart
            self.refresh()

    @property
    def marker(self) -> Marker:
        """The marker of the app's settings; braille where there are none."""
        settings = getattr(self.app, "settings", None)
        marker: Marker = getattr(settings, "marker", "braille")
        return marker

    def render(self) -> Text:
        """The drawing for the present size, marker and theme, cached until one of them or the chart changes."""
        if self._chart is None:
            return Text("")
        key = (self._chart, self.size, self.marker, self.app.theme)
        if self._drawn is None or self._drawn[0] != key:
            text = draw(
                self._chart,
                width=self.size.width,
                height=self.size.height,
                marker=self.marker,
                colours=theme_colours(self.app.theme_variables),
            )
            self._drawn = key, Text.from_ansi(text, no_wrap=True)
        return self._drawn[1]
