"""A plot in the app: redrawn from its chart whenever its size, marker or theme changes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.text import Text
from textual.color import Color, ColorParseError
from textual.widget import Widget

from tui.charts import Marker
from tui.charts.chart import Chart
from tui.charts.chart_text import Colours, Rgb, draw

if TYPE_CHECKING:
    from collections.abc import Mapping

# Okabe and Ito's palette, which colour-blind readers can tell apart; darker on a light background.
ON_DARK: tuple[Rgb, ...] = ((0, 200, 145), (240, 170, 20), (96, 190, 240), (225, 120, 175), (240, 228, 66))
ON_LIGHT: tuple[Rgb, ...] = ((0, 120, 85), (190, 95, 0), (0, 95, 160), (165, 60, 115), (110, 100, 0))
_GREY: Rgb = (140, 140, 140)


def theme_colours(variables: Mapping[str, str], *, dark: bool) -> Colours:
    """Colours of a plot: axes and lines from the theme, series from a palette that suits its background."""
    text = _rgb(variables.get("foreground"))
    background = _rgb(variables.get("background"))
    return Colours(
        axes=_between(background, text, 0.55),
        text=text,
        line=_between(background, text, 0.75),
        series=ON_DARK if dark else ON_LIGHT,
    )


def _rgb(value: str | None) -> Rgb:
    try:
        colour = Color.parse(value or "")
    except ColorParseError:
        return _GREY
    return colour.rgb if colour.ansi is None else _GREY  # the terminal's own colours are unknown here


def _between(low: Rgb, high: Rgb, share: float) -> Rgb:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(low, high, strict=True))
    return red, green, blue


class PlotView(Widget):
    """Shows a `Chart` in the available space."""

    DEFAULT_CSS = "PlotView { height: 1fr; min-height: 3; }"

    def __init__(self, chart: Chart | None = None, *, id: str | None = None, classes: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id, classes=classes)
        self._chart = chart
        self._drawn: tuple[object, Text] | None = None
        self.drawing_s = 0.0
        """Time of the last drawing, which happens when the screen is painted, not in `show`."""

    @property
    def chart(self) -> Chart | None:
        """What is shown."""
        return self._chart

    def show(self, chart: Chart) -> None:
        """Show `chart`; it is drawn again only when it, the size, the marker or the theme differs."""
        self._chart = chart
        self.refresh()

    @property
    def marker(self) -> Marker:
        """The marker of the app's settings; braille without settings."""
        settings = getattr(self.app, "settings", None)
        marker: Marker = getattr(settings, "marker", "braille")
        return marker

    def render(self) -> Text:
        """The drawing for the present size, marker and theme, cached until one of them or the chart changes."""
        if self._chart is None:
            return Text("")
        key = (self._chart, self.size, self.marker, self.app.theme)
        if self._drawn is None or self._drawn[0] != key:
            began = time.monotonic()
            text = draw(
                self._chart,
                width=self.size.width,
                height=self.size.height,
                marker=self.marker,
                colours=theme_colours(self.app.theme_variables, dark=self.app.current_theme.dark),
            )
            self._drawn = key, Text.from_ansi(text, no_wrap=True)
            self.drawing_s = time.monotonic() - began
        return self._drawn[1]
