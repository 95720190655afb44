"""A chart as a file: SVG written here, PNG made from it by cairosvg, text by plotext."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path
from xml.sax.saxutils import escape

from engine.errors import OptionError
from tui.charts.chart import Chart, Level, Point, Scale, Series, ticks
from tui.charts.chart_text import draw

SUFFIXES = (".svg", ".png", ".txt")
TEXT_SIZE = (78, 24)

_WIDTH, _HEIGHT = 760, 460
_LEFT, _RIGHT, _TOP, _BOTTOM = 92, 24, 62, 92
_INSET = 14
"""Pixels between an axis and the first point."""
_X_TICKS, _Y_TICKS = 24, 8
_COLOURS = ("#1f5fa8", "#b3432b", "#2f7d4f", "#8a5a00", "#6b4fa0", "#6b6b6b")
_BLACK, _GREY = "#222", "#e4e4e4"


def check_plot_path(path: Path) -> None:
    """Raise `OptionError` before anything is measured if the plot could not be written afterwards."""
    if path.suffix.lower() not in SUFFIXES:
        raise OptionError("plot", f"the name of a plot must end in {', '.join(SUFFIXES)}, not {path.name}")
    if path.suffix.lower() == ".png":
        _cairosvg()


def render(path: Path, chart: Chart) -> bytes:
    """The chart in the format of the file name. Raises OptionError."""
    suffix = path.suffix.lower()
    if suffix == ".txt":
        return f"{as_text(chart)}\n".encode()
    svg = as_svg(chart)
    return as_png(svg) if suffix == ".png" else svg.encode()


def as_text(chart: Chart) -> str:
    """The chart in plain characters with its caption, without colour codes."""
    width, height = TEXT_SIZE
    lines = draw(chart, width=width, height=height, marker="dot").split("\n")
    return "\n".join([line.rstrip() for line in lines] + chart.caption.splitlines())


def as_png(svg: str) -> bytes:
    """The SVG as a PNG at twice its size. Raises OptionError without cairosvg."""
    png: bytes = _cairosvg()(bytestring=svg.encode(), scale=2)
    return png


def _cairosvg() -> Callable[..., bytes]:
    try:
        from cairosvg import svg2png
    except (ImportError, OSError):  # OSError: the package is installed, but the system's cairo library is missing
        raise OptionError(
            "plot", "a .png plot needs cairosvg: pip install 'kvscope[png]', or write .svg or .txt"
        ) from None
    convert: Callable[..., bytes] = svg2png
    return convert


# SVG


def as_svg(chart: Chart) -> str:
    """A complete SVG document; if there is no point to draw, it says why."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" font-family="sans-serif" font-size="13" fill="{_BLACK}">',
        f"<title>{escape(chart.title)}</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        _text(_LEFT, 26, " · ".join([chart.title, *chart.notes]), size=16, anchor="start"),
        *(_plot(chart) if any(series.points for series in chart.series) else [_text(_LEFT, 60, chart.empty)]),
        *_caption(chart.caption),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _plot(chart: Chart) -> Iterator[str]:
    x_scale, y_scale = chart.scales

    def x(value: float) -> float:
        return _LEFT + _INSET + x_scale.share(value) * (_WIDTH - _LEFT - _RIGHT - 2 * _INSET)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - y_scale.share(value) * (_HEIGHT - _TOP - _BOTTOM)

    yield from _x_axis(chart, x)
    yield from _y_axis(chart, y, y_scale)
    yield from (_level(level, y) for level in chart.levels)
    for series in chart.series:
        yield from _series(series, x, y, x_scale, y_scale)
    yield from _legend(chart)


Place = Callable[[float], float]


def _x_axis(chart: Chart, x: Place) -> Iterator[str]:
    """The axis with a tick at every x that has a point, or at round values if there are many.

    Labels that would touch the previous one are left out.
    """
    bottom = _HEIGHT - _BOTTOM
    yield _segment(_LEFT, bottom, _WIDTH - _RIGHT, bottom, _BLACK)
    last = -inf
    values = sorted({x for series in chart.series for x, _ in series.points})
    if len(values) > _X_TICKS:
        values = ticks(chart.scales[0], count=_X_TICKS, doubling=chart.x.doubling)
    for value in values:
        at, label = x(value), chart.x.tick(value)
        yield _segment(at, bottom, at, bottom + 5, _BLACK)
        if at - last > 4 + 8 * len(label):
            yield _text(at, bottom + 20, label)
            last = at
    yield _text((_LEFT + _WIDTH - _RIGHT) / 2, bottom + 42, _title(chart.x.title, log=chart.x.log))


def _y_axis(chart: Chart, y: Place, scale: Scale) -> Iterator[str]:
    yield _segment(_LEFT, _TOP, _LEFT, _HEIGHT - _BOTTOM, _BLACK)
    for value in ticks(scale, count=_Y_TICKS, doubling=chart.y.doubling):
        yield _segment(_LEFT, y(value), _WIDTH - _RIGHT, y(value), _GREY)
        yield _text(_LEFT - 8, y(value) + 4, chart.y.tick(value), anchor="end")
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    title = escape(_title(chart.y.title, log=chart.y.log))
    yield f'<text transform="translate(20 {middle:.1f}) rotate(-90)" text-anchor="middle">{title}</text>'


def _title(title: str, *, log: bool) -> str:
    return f"{title}, logarithmic" if log else title


def _level(level: Level, y: Place) -> str:
    return _segment(_LEFT, y(level.value), _WIDTH - _RIGHT, y(level.value), _BLACK, dash="2 3")


def _series(series: Series, x: Place, y: Place, x_scale: Scale, y_scale: Scale) -> Iterator[str]:
    """The line through the points; a bar from the least to the greatest value and a symbol at each."""
    colour = _colour(series)
    spread = series.spread or ((None, None),) * len(series.points)
    pairs = zip(series.points, spread, strict=True)
    drawn = sorted((pair for pair in pairs if x_scale.holds(pair[0][0]) and y_scale.holds(pair[0][1])), key=_first)
    if series.joined:
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for (a, b), _ in drawn)
        dash = ' stroke-dasharray="6 4"' if series.symbol == "×" else ""
        yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>'
    for (a, b), (low, high) in drawn:
        if low is not None and high is not None:
            yield _segment(x(a), y(low), x(a), y(high), colour)
        yield _symbol(series, x(a), y(b))


def _first(pair: tuple[Point, object]) -> Point:
    return pair[0]


def _colour(series: Series) -> str:
    return _COLOURS[series.colour % len(_COLOURS)]


def _symbol(series: Series, x: float, y: float) -> str:
    """The mark of a point; none for a plain line, which is calculated, not measured."""
    colour = _colour(series)
    r = 4.5
    paths = {
        "×": f"M{x - r:.1f} {y - r:.1f}l9 9m0 -9l-9 9",
        "+": f"M{x - r:.1f} {y:.1f}h9m-{r} -{r}v9",
        "◆": f"M{x:.1f} {y - r:.1f}l{r} {r}l-{r} {r}l-{r} -{r}z",
    }
    if series.symbol in paths:
        return f'<path d="{paths[series.symbol]}" fill="none" stroke="{colour}" stroke-width="2"/>'
    if series.symbol not in ("●", "○"):
        return ""
    fill = colour if series.symbol == "●" else "#fff"
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}" fill="{fill}" stroke="{colour}"/>'


def _legend(chart: Chart) -> Iterator[str]:
    """Symbol and name of each series, then each level with its dashes, in a line under the title."""
    at = _LEFT + 14.0
    for series in chart.series:
        yield _symbol(series, at, 46) or _segment(at - 8, 46, at + 8, 46, _colour(series))
        yield _text(at + 12, 50, series.label, anchor="start")
        at += 44 + 7 * len(series.label)
    for level in chart.levels:
        yield _segment(at - 8, 46, at + 8, 46, _BLACK, dash="2 3")
        yield _text(at + 12, 50, level.label, anchor="start")
        at += 44 + 7 * len(level.label)


def _caption(caption: str) -> list[str]:
    lines = caption.splitlines()
    return [
        _text(_LEFT, _HEIGHT - 14 - 15 * (len(lines) - 1 - number), line, size=11, anchor="start")
        for number, line in enumerate(lines)
    ]


def _segment(x1: float, y1: float, x2: float, y2: float, colour: str, *, dash: str = "") -> str:
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{dashed}/>'


def _text(x: float, y: float, text: str, *, size: int = 13, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}">{escape(text)}</text>'
