"""A chart drawn in characters. The only module that uses plotext.

plotext 5 keeps one global figure, takes logarithms of data in place (a second build fails) and limits sizes to the
terminal. So every drawing here has its own figure, gets precomputed logarithms with our own ticks, and is told its
size.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import floor
from typing import Any, TypeAlias

from tui.charts import Marker
from tui.charts.chart import Chart, Scale, Series, ticks

Rgb: TypeAlias = tuple[int, int, int]

MIN_WIDTH, MIN_HEIGHT = 30, 8
TICK_COLUMNS, TICK_ROWS = 8, 2
"""Room per tick label, so that labels never touch."""
PLAIN_SYMBOLS = {"●": "o", "○": "0", "×": "x", "+": "+", "◆": "*", "╌": "-", "┄": "."}
_ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, slots=True, kw_only=True)
class Colours:
    """Colours of a drawing, red green blue. `series` are taken in turn."""

    axes: Rgb
    text: Rgb
    line: Rgb
    series: tuple[Rgb, ...]


def draw(chart: Chart, *, width: int, height: int, marker: Marker = "braille", colours: Colours | None = None) -> str:
    """The chart in `width` x `height` characters with ANSI colours; without any when `colours` is None.

    Below 30 x 8 characters, or without points, the answer is one short line of text.
    """
    if width < MIN_WIDTH or height < MIN_HEIGHT:
        return _clip(f"{chart.title}: a plot needs {MIN_WIDTH} x {MIN_HEIGHT} characters", width)
    if not any(series.points for series in chart.series):
        return f"{_clip(chart.title, width)}\n\n{_clip(chart.empty, width)}"
    head = _head(chart, width=width, height=height, marker=marker, colours=colours)
    body = _body(chart, width=width, height=height - len(head), marker=marker, colours=colours)
    text = "\n".join([*head, *body])
    return text if colours is not None else _ESCAPE.sub("", text)


def plain(text: str) -> str:
    """`text` without colours."""
    return _ESCAPE.sub("", text)


def _clip(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"


# The lines above the axes: title, notes, legend


def _head(chart: Chart, *, width: int, height: int, marker: Marker, colours: Colours | None) -> list[str]:
    """Title, at most one note, the y title and the legend on as many lines as fit."""
    title = chart.title
    if chart.notes:
        joined = f"{title} · {chart.notes[0]}"
        title = joined if len(joined) <= width else title
    lines = [f"\x1b[1m{_clip(title, width)}\x1b[0m"]
    if chart.notes and title == chart.title and height >= MIN_HEIGHT + 3:
        lines.append(_clip(chart.notes[0], width))
    entries: list[tuple[str, Rgb | None]] = [(f"{chart.y.title} ↑", None)]
    entries += [(f"{_sign(s, marker)} {s.label}", _series_colour(s, colours)) for s in chart.series if s.label]
    entries += [(f"{_symbol(v.symbol, marker) * 2} {v.label}", colours.line if colours else None) for v in chart.levels]
    room = max(1, min(4, (height - MIN_HEIGHT) // 3 + 1))
    return lines + _flow(entries, width=width, room=room)


def _flow(entries: Sequence[tuple[str, Rgb | None]], *, width: int, room: int) -> list[str]:
    """Entries on lines of `width`, two spaces apart; what does not fit in `room` lines is left out."""
    lines, used = [""], 0
    for text, colour in entries:
        shown = _clip(text, width)
        gap = 2 if used else 0
        if used + gap + len(shown) > width:
            if len(lines) == room:
                break
            lines.append("")
            used, gap = 0, 0
        lines[-1] += " " * gap + _coloured(shown, colour)
        used += gap + len(shown)
    return lines


def _coloured(text: str, colour: Rgb | None) -> str:
    return text if colour is None else "\x1b[38;2;{};{};{}m".format(*colour) + text + "\x1b[0m"


def _series_colour(series: Series, colours: Colours | None) -> Rgb | None:
    return colours.series[series.colour % len(colours.series)] if colours else None


def _sign(series: Series, marker: Marker) -> str:
    """The legend symbol of a series: a dash if its points have no symbol."""
    return _symbol(series.symbol, marker) if series.symbol.strip() else "─"


def _symbol(symbol: str, marker: Marker) -> str:
    return PLAIN_SYMBOLS.get(symbol, symbol) if marker == "dot" else symbol


# The drawing


FINE: dict[Marker, tuple[int, int]] = {"braille": (2, 4), "hd": (2, 2), "dot": (1, 1)}
"""Points a character cell holds, across and up, by marker."""


@dataclass(frozen=True, slots=True)
class _Grid:
    """The cells of the canvas, and the finer points that lines are drawn with.

    plotext rounds single characters and fine points differently, by up to one cell. `snap` moves a value into the cell
    of a line through it, so that symbols, ticks and levels are on the lines.
    """

    x: Scale
    y: Scale
    cells: tuple[int, int]
    fine: tuple[int, int]

    def snap(self, x: float, y: float) -> tuple[float, float]:
        """Positions for a single character at (x, y)."""
        return self._snap(self.x, x, 0), self._snap(self.y, y, 1)

    def _snap(self, scale: Scale, value: float, axis: int) -> float:
        cells, fine = self.cells[axis], self.fine[axis]
        cell = floor(round(0.5 + (cells * fine - 1) * scale.share(value), 8)) // fine
        return scale.low + (scale.high - scale.low) * cell / max(1, cells - 1)


def _body(chart: Chart, *, width: int, height: int, marker: Marker, colours: Colours | None) -> list[str]:
    from plotext._figure import _figure_class

    x, y = chart.scales
    rows = ticks(y, count=(height - 3) // TICK_ROWS, doubling=chart.y.doubling)
    columns = ticks(x, count=(width - 8) // TICK_COLUMNS, doubling=chart.x.doubling)
    label_width = max((len(chart.y.tick(v)) for v in rows), default=0)
    grid = _Grid(x, y, (width - label_width - 1, height - 3), FINE[marker])
    figure = _figure_class()
    figure._limit_size(False, False)
    figure.plot_size(width, height)
    figure.theme("clear")
    if colours is not None:
        figure.ticks_color(colours.axes)
    figure.xaxes(True, False)
    figure.yaxes(True, False)
    figure.xlim(x.low, x.high)
    figure.ylim(y.low, y.high)
    figure.yticks([grid.snap(x.start, v)[1] for v in rows], [chart.y.tick(v) for v in rows])
    figure.xticks([grid.snap(v, y.start)[0] for v in columns], [chart.x.tick(v) for v in columns])
    _order_ticks(figure)
    figure.xlabel(_clip(chart.x.title + " →", width - 2))
    _add_levels(chart, figure, grid, marker=marker, colours=colours)
    _add_series(chart, figure, grid, marker=marker, colours=colours)
    return str(figure.build()).rstrip("\n").split("\n")


def _order_ticks(figure: Any) -> None:
    """plotext keeps ticks in a set, so which of two close labels is dropped would change from run to run."""
    held = figure.monitor
    for ticks_of, labels_of in ((held.xticks, held.xlabels), (held.yticks, held.ylabels)):
        if ticks_of[0]:
            pairs = sorted(zip(ticks_of[0], labels_of[0], strict=True))
            ticks_of[0], labels_of[0] = ([pair[i] for pair in pairs] for i in (0, 1))


def _add_levels(chart: Chart, figure: Any, grid: _Grid, *, marker: Marker, colours: Colours | None) -> None:
    for level in chart.levels:
        _, at = grid.snap(grid.x.start, level.value)
        symbol = _symbol(level.symbol, marker)
        figure.plot([grid.x.low, grid.x.high], [at, at], marker=symbol, color=colours.line if colours else None)


def _add_series(chart: Chart, figure: Any, grid: _Grid, *, marker: Marker, colours: Colours | None) -> None:
    """Lines first, then the symbols over them, so that a line never hides a point."""
    for series in chart.series:
        points = [(grid.x.place(a), grid.y.place(b)) for a, b in _drawable(series, grid)]
        if points and series.joined:
            line = "·" if marker == "dot" else marker
            figure.plot(*_coordinates(points), marker=line, color=_series_colour(series, colours))
    for series in chart.series:
        points = [grid.snap(a, b) for a, b in _drawable(series, grid)]
        if points and series.symbol.strip():
            symbol = _symbol(series.symbol, marker)
            figure.scatter(*_coordinates(points), marker=symbol, color=_series_colour(series, colours))


def _drawable(series: Series, grid: _Grid) -> list[tuple[float, float]]:
    return [(a, b) for a, b in series.points if grid.x.holds(a) and grid.y.holds(b)]


def _coordinates(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [p[0] for p in points], [p[1] for p in points]
